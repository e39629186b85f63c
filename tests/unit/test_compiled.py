"""Compiled modules: nothing in them that mypyc gets wrong; how many there are, which are stale."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.compiled import SUFFIX, Compiled, check, compiled
from orchestrator.errors import ConfigError
from tools.compiled import MODULES, ROOT


def test_every_module_that_is_compiled_is_there() -> None:
    assert [path for path in MODULES if not (ROOT / path).is_file()] == []


def own(body: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function itself, not in one inside it."""
    for child in ast.iter_child_nodes(body):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from own(child)


def waiting_last(tree: ast.Module) -> list[int]:
    """Lines of a `finally` that await: what passes it would be lost."""
    tries = [x for x in ast.walk(tree) if isinstance(x, ast.Try | ast.TryStar)]
    last = [line for each in tries for line in each.finalbody if _awaits(line)]
    return [line.lineno for line in last]


def _awaits(line: ast.AST) -> bool:
    found = list(ast.walk(line))
    waits = any(isinstance(x, ast.Await | ast.AsyncWith | ast.AsyncFor) for x in found)
    return waits or any(isinstance(x, ast.comprehension) and x.is_async for x in found)


def async_generators(tree: ast.Module) -> list[int]:
    """Lines of asynchronous generators, functions and expressions."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef):
            if any(isinstance(x, ast.Yield) for x in own(node)):
                found.append(node.lineno)
        elif isinstance(node, ast.GeneratorExp):
            first, *others = node.generators  # what the first goes over is not of the generator
            if first.is_async or any(_awaits(x) for x in (node.elt, *first.ifs, *others)):
                found.append(node.lineno)
    return found


def generic_dataclasses(tree: ast.Module) -> list[int]:
    """Lines of dataclasses with parameters of types."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            made = any("dataclass" in ast.unparse(x) for x in node.decorator_list)
            given = [x for x in node.bases if isinstance(x, ast.Subscript)]
            if made and (given or getattr(node, "type_params", None)):  # `class A[T]` since 3.12
                found.append(node.lineno)
    return found


def pydantic_models(tree: ast.Module) -> list[int]:
    """Lines of classes that come from pydantic, through classes of ours too, or are made by it."""
    classes = [x for x in ast.walk(tree) if isinstance(x, ast.ClassDef)]
    return [
        node.lineno
        for node in classes
        if any(_of_pydantic(tree, ast.unparse(x)) for x in (*node.bases, *node.decorator_list))
    ]


def _of_pydantic(tree: ast.Module, said: str) -> bool:
    """Whether a base or decorator, as it is written in a module, leads to pydantic."""
    name, _, rest = re.split(r"[\[(]", said)[0].partition(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name and not rest:
            if any(_of_pydantic(tree, ast.unparse(x)) for x in (*node.bases, *node.decorator_list)):
                return True
        elif isinstance(node, ast.Import):
            for each in node.names:
                full = each.name if each.asname else each.name.split(".")[0]
                if (each.asname or full) == name and full.startswith("pydantic"):
                    return True
        elif isinstance(node, ast.ImportFrom) and node.module:
            for each in node.names:
                if (each.asname or each.name) == name and _in_module(node.module, each.name, rest):
                    return True
    return False


def _in_module(module: str, name: str, rest: str) -> bool:
    """Whether `from module import name`, and `rest` of that, leads to pydantic."""
    if module.startswith("pydantic"):
        return True
    inside = f"{module}.{name}" if rest else module  # `rest` is something of a module then
    for file in (f"{inside.replace('.', '/')}.py", f"{inside.replace('.', '/')}/__init__.py"):
        if (ROOT / file).is_file():
            return _of_pydantic(ast.parse((ROOT / file).read_text()), rest or name)
    return False


RULES = (waiting_last, async_generators, generic_dataclasses, pydantic_models)
Rule = Callable[[ast.Module], list[int]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", MODULES)
def test_a_compiled_module_has_nothing_that_mypyc_gets_wrong(path: str, rule: Rule) -> None:
    """docs/decisions/015-compiled-gateway.md, what it asks of the sources."""
    assert rule(ast.parse((ROOT / path).read_text())) == []


OFFENCES: list[tuple[Rule, str]] = [
    (waiting_last, "async def f():\n try:\n  pass\n finally:\n  await g()"),
    (waiting_last, "async def f():\n try:\n  pass\n except* E:\n  pass\n finally:\n  await g()"),
    (waiting_last, "async def f():\n try:\n  pass\n finally:\n  [x async for x in y]"),
    (async_generators, "async def f():\n if x:\n  yield 1"),
    (async_generators, "async def f():\n x = yield"),
    (async_generators, "async def f():\n g(x async for x in y)"),
    (async_generators, "async def f():\n g(await x for x in y)"),
    (generic_dataclasses, "@dataclass\nclass A(Generic[T]): pass"),
    (generic_dataclasses, "@dataclasses.dataclass(slots=True)\nclass A(B, C[T]): pass"),
    (pydantic_models, "from pydantic import BaseModel as M\nclass A(M): pass"),
    (pydantic_models, "import pydantic\nclass A(pydantic.RootModel[int]): pass"),
    (pydantic_models, "from pydantic.dataclasses import dataclass\n@dataclass\nclass A: pass"),
    (pydantic_models, "from engine_launchers.base import EnginePlan\nclass A(EnginePlan): pass"),
    (pydantic_models, "from engine_launchers import base\nclass A(base.EnginePlan): pass"),
    (pydantic_models, "from orchestrator.settings import Settings\nclass A(Settings): pass"),
]
FINE: list[tuple[Rule, str]] = [
    (waiting_last, "async def f():\n try:\n  await g()\n finally:\n  h()"),
    (async_generators, "async def f():\n def g():\n  yield 1\n return [x async for x in y]"),
    (async_generators, "async def f():\n return (x for x in await g())"),
    (generic_dataclasses, "@dataclass\nclass A(B): pass\nclass C(Generic[T]): pass"),
    (pydantic_models, "from dataclasses import dataclass\n@dataclass\nclass A: pass"),
]


@pytest.mark.parametrize(("rule", "source"), OFFENCES)
def test_what_mypyc_gets_wrong_is_seen(rule: Rule, source: str) -> None:
    assert len(rule(ast.parse(source))) == 1


@pytest.mark.parametrize(("rule", "source"), FINE)
def test_what_mypyc_gets_right_is_let_be(rule: Rule, source: str) -> None:
    assert rule(ast.parse(source)) == []


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
