"""What failed at first is named, and too much of it fails the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.repeats import MOST

ROOT = Path(__file__).parents[2]
FIRST = "import pathlib\n\n"
ONE = (
    "def test_{0}(tmp_path_factory):\n"
    "    mark = pathlib.Path(__file__).with_name('mark{0}')\n"
    "    held = mark.exists()\n"
    "    mark.touch()\n"
    "    assert held\n\n"
)


def run(file: Path) -> subprocess.CompletedProcess[str]:
    """That file by itself, each test twice at most."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.repeats", "--reruns", "1", "--rootdir",
         str(file.parent), "-c", "/dev/null", str(file)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("tests", "code"), [(1, 0), (MOST, 0), (MOST + 1, 1)])
def test_a_few_second_tries_are_named_and_many_fail(tmp_path: Path, tests: int, code: int) -> None:
    file = tmp_path / "test_shaky.py"
    file.write_text(FIRST + "".join(ONE.format(number) for number in range(tests)))
    told = run(file)
    assert told.returncode == code, told.stdout
    assert told.stdout.count("test_shaky.py::test_") == tests
    assert ("the run has failed" in told.stdout) == bool(code)


def test_what_fails_twice_has_failed(tmp_path: Path) -> None:
    file = tmp_path / "test_wrong.py"
    file.write_text("def test_it():\n    assert False\n")
    told = run(file)
    assert told.returncode == 1
    assert "1 failed, 1 rerun" in told.stdout
