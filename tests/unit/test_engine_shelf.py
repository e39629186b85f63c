"""An engine's environment is whole or made anew; nothing of an installation outlives it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.engines.choosing import Requirement
from orchestrator.engines.marker import MARKER, write_marker
from orchestrator.engines.shelf import Shelf
from orchestrator.errors import EngineMissing
from tests.harness import eventually


def need(**changes: object) -> Requirement:
    made = Requirement(
        engine="llama_cpp",
        version="1",
        flavour="cpu",
        program="bin/python",
        packages=("typing-extensions",),
        check=(("{python}", "-c", "import typing_extensions"),),
    )
    return made.model_copy(update=changes)


def install(shelf: Shelf, requirement: Requirement) -> list[str]:
    lines: list[str] = []
    asyncio.run(shelf.install(requirement, lambda line, _: lines.append(line)))
    return lines


@pytest.mark.slow
def test_an_environment_is_made_once_and_anew_when_the_need_changes(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, os.environ)
    assert shelf.installed() == []
    assert install(shelf, need())
    assert [row.version for row in shelf.installed()] == ["1"]
    assert install(shelf, need()) == []
    assert install(shelf, need(packages=("typing-extensions", "packaging")))
    assert install(shelf, need())
    (shelf.path(need()) / MARKER).unlink()  # as an interruption leaves it
    assert install(shelf, need())
    with pytest.raises(EngineMissing, match="could not be installed"):
        install(shelf, need(version="2", packages=("./does-not-exist",)))


def test_a_failing_check_is_a_failed_installation(tmp_path: Path) -> None:
    broken = need(packages=(), check=((sys.executable, "-c", "raise SystemExit('error: no')"),))
    shelf = Shelf(tmp_path, {**os.environ, "PATH": str(tmp_path)})
    fake = tmp_path / "uv"  # an installer that does nothing and succeeds
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    with pytest.raises(EngineMissing, match="could not be installed"):
        install(shelf, broken)


async def test_an_installation_that_is_given_up_leaves_no_compiler_running(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    fake = tmp_path / "uv"
    fake.write_text(f"#!/bin/sh\n/bin/sleep 300 &\necho $! > {pids}\nwait\n")
    fake.chmod(0o755)
    shelf = Shelf(tmp_path / "envs", {"PATH": str(tmp_path)})
    task = asyncio.create_task(shelf.install(need(), lambda *_: None))
    await eventually(lambda: pids.exists() and pids.read_text().strip(), 10, "the compiler runs")
    compiler = psutil.Process(int(pids.read_text()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(
        lambda: not compiler.is_running() or compiler.status() == psutil.STATUS_ZOMBIE,
        5,
        "the compiler is gone",
    )


def test_build_scripts_never_see_our_keys(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    fake = tmp_path / "uv"
    fake.write_text(f"#!/bin/sh\n/usr/bin/env >> {seen}\n")
    fake.chmod(0o755)
    env = {"PATH": str(tmp_path), "ENGINEROOM_API_KEYS": "sekret"}
    shelf = Shelf(tmp_path / "envs", env)
    with pytest.raises(EngineMissing):  # nothing was really made
        install(shelf, need(check=()))
    assert "PATH=" in seen.read_text()
    assert "sekret" not in seen.read_text()


def test_a_missing_compiler_is_one_sentence(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {"PATH": str(tmp_path)})
    with pytest.raises(EngineMissing, match=r"needs c\+\+, which is missing: install it"):
        shelf.preflight(need(built_for=("AVX2",)))
    shelf.preflight(need())


@pytest.mark.slow
def test_a_build_for_another_processor_is_not_taken(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, os.environ)
    python = shelf.path(need()) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    write_marker(shelf.path(need()), need(built_for=("AVX2",)))
    assert install(shelf, need(built_for=("AVX2",))) == []
    assert install(shelf, need(built_for=("AVX2", "AMX")))
