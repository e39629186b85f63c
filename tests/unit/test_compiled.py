"""What is told of compiled modules: how many, and which are not of the sources that are there."""

from __future__ import annotations

import ast
import json
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.compiled import SUFFIX, Compiled, check, compiled
from orchestrator.errors import ConfigError
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
    manifest = folder / "compiled.json"
    assert compiled(manifest) == Compiled()
    for name in "ab":
        (folder / f"{name}.py").write_text(f"{name.upper()} = 1\n")
        (folder / f"{name}{SUFFIX}").touch()
    (folder / "c.other.so").touch()  # another interpreter's
    both = ("orchestrator/a.py", "orchestrator/b.py")
    assert compiled(manifest) == Compiled(2, both), "made, and not written down"
    was = {f"orchestrator/{name}.py": sha256(f"{name.upper()} = 1\n".encode()).hexdigest()
           for name in "ab"}  # fmt: skip
    manifest.write_text(json.dumps({"sources": was}))
    assert compiled(manifest) == Compiled(2)
    (folder / "a.py").write_text("A = 2\n")
    assert compiled(manifest) == Compiled(2, both[:1])
    (folder / "b.py").unlink()
    assert compiled(manifest) == Compiled(2, both)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sources": 2}'])
def test_a_manifest_that_is_none_knows_no_source(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "orchestrator"
    folder.mkdir()
    (folder / "compiled.json").write_text(text)
    assert compiled(folder / "compiled.json") == Compiled()
    (folder / f"a{SUFFIX}").touch()
    assert compiled(folder / "compiled.json") == Compiled(1, ("orchestrator/a.py",))


def test_nothing_is_served_by_what_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    stale = Compiled(1, ("orchestrator/gateway/job.py",))
    monkeypatch.setattr("orchestrator.compiled.compiled", lambda: stale)
    with pytest.raises(ConfigError, match=r"first: orchestrator/gateway/job\.py.*make compiled"):
        check()
