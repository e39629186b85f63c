"""What is told of compiled modules: how many, and which are not of the sources that are there."""

from __future__ import annotations

import ast
import json
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.compiled import SUFFIX, Compiled, compiled
from tools.compiled import MODULES, ROOT


def test_every_module_that_is_compiled_is_there() -> None:
    assert [path for path in MODULES if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("path", MODULES)
def test_no_finally_of_a_compiled_module_awaits(path: str) -> None:
    """mypyc loses the exception that passes it: a cancelled coroutine would go on."""
    tries = [x for x in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(x, ast.Try)]
    last = [inner for each in tries for line in each.finalbody for inner in ast.walk(line)]
    assert not [x for x in last if isinstance(x, ast.Await | ast.AsyncWith | ast.AsyncFor)]


def test_sources_that_changed_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "orchestrator"
    folder.mkdir()
    (folder / "a.py").write_text("A = 1\n")
    (folder / "b.py").write_text("B = 1\n")
    was = {f"orchestrator/{name}.py": sha256(f"{name.upper()} = 1\n".encode()).hexdigest()
           for name in "ab"}  # fmt: skip
    manifest = folder / "compiled.json"
    manifest.write_text(json.dumps({"suffix": SUFFIX, "sources": was}))
    assert compiled(manifest) == Compiled(2)
    (folder / "a.py").write_text("A = 2\n")
    assert compiled(manifest) == Compiled(2, ("orchestrator/a.py",))
    (folder / "b.py").unlink()
    assert compiled(manifest) == Compiled(2, ("orchestrator/a.py", "orchestrator/b.py"))
    manifest.write_text(json.dumps({"suffix": ".other.so", "sources": was}))
    assert compiled(manifest) == Compiled()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"suffix": 1}', '{"suffix": 1, "sources": 2}'])
def test_a_manifest_that_is_none_tells_of_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "compiled.json").write_text(text)
    assert compiled(tmp_path / "compiled.json") == compiled(tmp_path / "none") == Compiled()
