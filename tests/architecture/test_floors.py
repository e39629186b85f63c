"""The house holds: imports go strictly downward, pure rooms stay pure, no circle, no long file."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from orchestrator.supervision.event_types import TYPES

ROOT = Path(__file__).resolve().parents[2]

# Longest prefix wins. A module imports only from lower floors, or from its own room.
FLOORS: dict[str, int] = {
    "engine_launchers.value": -3,
    "engine_launchers.series": -2,
    "engine_launchers.traits": -1,
    "engine_launchers.watch": -1,
    "engine_launchers.container": -1,
    "engine_launchers.machine": -1,
    "engine_launchers.model": -1,
    "engine_launchers.base": 0,
    "orchestrator": 0,  # the package itself: its version
    "orchestrator.errors": 0,
    "orchestrator.envelopes": 1,
    "orchestrator.access": 0,
    "orchestrator.resources": 0,
    "engine_launchers": 1,
    "orchestrator.config_file": 1,
    "orchestrator.setting_types": 1,
    "orchestrator.model_settings": 2,
    "orchestrator.observability_settings": 2,
    "orchestrator.settings": 3,
    "orchestrator.listening": 1,
    "orchestrator.notify": 1,
    "orchestrator.compiled": 1,
    "orchestrator.endings": 1,
    "orchestrator.keyfile": 1,
    "orchestrator.contradictions": 4,
    "orchestrator.keys": 4,
    "orchestrator.tls": 4,
    "orchestrator.gateway_config": 4,
    "orchestrator.outpost": 5,
    "orchestrator.control": 1,
    "orchestrator.supervision.events": 1,
    "orchestrator.supervision.lifecycle": 2,
    "orchestrator.planning": 2,
    "orchestrator.hardware": 2,
    "orchestrator.models": 2,
    "orchestrator.runtimes": 2,
    "orchestrator.observability": 2,
    "orchestrator.supervision": 3,
    "orchestrator.engines": 3,
    "orchestrator.gateway": 3,
    "orchestrator.fence": 3,
    "orchestrator.admin_orders": 4,
    "orchestrator.doctor": 4,
    "orchestrator.generating": 4,
    "orchestrator.admin_events": 4,
    "orchestrator.admin_keys": 4,
    "orchestrator.admin": 5,
    "orchestrator.tables": 3,
    "orchestrator.external": 4,
    "orchestrator.advice": 4,
    "orchestrator.startup": 5,
    "orchestrator.rooms": 4,
    "orchestrator.ours": 4,
    "orchestrator.launching": 6,
    "orchestrator.ordering": 6,
    "orchestrator.serve": 7,
    "orchestrator.detector": 4,
    "orchestrator.child": 4,
    "orchestrator.loaded": 5,
    "orchestrator.adaptive": 7,
    "orchestrator.bench": 5,
    "orchestrator.cli": 8,
    "orchestrator.__main__": 9,
}
PURE = {
    "engine_launchers",
    *(
        f"orchestrator.bench.{part}"
        for part in [
            "answers",
            "arrivals",
            "compare",
            "figures",
            "histogram",
            "html",
            "lengths",
            "load",
            "orders",
            "parse",
            "plots",
            "prompts",
            "records",
            "report",
            "sse",
            "streaming",
            "targets",
            "words",
        ]
    ),
    "orchestrator.access",
    "orchestrator.fence.calls",
    "orchestrator.fence.bodies",
    "orchestrator.doctor.facts",
    "orchestrator.doctor.judging",
    "orchestrator.engines.choosing",
    "orchestrator.engines.findings",
    "orchestrator.engines.recipe",
    "orchestrator.envelopes",
    "orchestrator.errors",
    "orchestrator.generating",
    "orchestrator.setting_types",
    "orchestrator.models.blocks",
    "orchestrator.models.caches",
    "orchestrator.models.catalog",
    "orchestrator.models.config_json",
    "orchestrator.models.facts",
    "orchestrator.models.gguf_mixes",
    "orchestrator.models.layer_kinds",
    "orchestrator.models.names",
    "orchestrator.models.parameters",
    "orchestrator.models.quantization",
    "orchestrator.models.tensor_parts",
    "orchestrator.planning",
    "orchestrator.supervision.event_types",
    "orchestrator.supervision.events",
    "orchestrator.supervision.exposition",
    "orchestrator.supervision.ledger",
    "orchestrator.supervision.lifecycle",
    "orchestrator.supervision.lines",
    "orchestrator.supervision.loading",
    "orchestrator.supervision.normalizing",
    "orchestrator.supervision.progress",
    "orchestrator.supervision.schedule",
    "orchestrator.supervision.silence",
    "orchestrator.gateway.asking",
    "orchestrator.gateway.buckets",
    "orchestrator.gateway.keyring",
    "orchestrator.gateway.defaults",
    "orchestrator.gateway.doors",
    "orchestrator.gateway.fairness",
    "orchestrator.gateway.pace",
    "orchestrator.gateway.policies",
    "orchestrator.gateway.sse",
    "orchestrator.gateway.guard",
    "orchestrator.gateway.shapes",
    "orchestrator.gateway.template",
    "orchestrator.gateway.anthropic",
    "orchestrator.gateway.manners",
    "orchestrator.gateway.ollama",
    "orchestrator.gateway.ollama_answers",
    "orchestrator.gateway.ollama_models",
    "orchestrator.gateway.ollama_shapes",
    "orchestrator.gateway.openapi",
    "orchestrator.gateway.plain",
    "orchestrator.gateway.texts",
    "orchestrator.gateway.books",
    "orchestrator.gateway.turns",
    "orchestrator.gateway.workers.adding",
    "orchestrator.gateway.workers.seat",
    "orchestrator.gateway.responses",
    "orchestrator.gateway.solo",
    "orchestrator.gateway.typed",
    "orchestrator.gateway.weights",
    "orchestrator.gateway.typed_shapes",
    "orchestrator.gateway.framing",
    "orchestrator.gateway.generate",
    "orchestrator.gateway.keep_alive",
    "orchestrator.gateway.openai",
    "orchestrator.gateway.body",
    "orchestrator.gateway.crowd",
    "orchestrator.gateway.outliers",
    "orchestrator.gateway.quarantine",
    "orchestrator.gateway.retries",
}
PROGRAMS = "engine_launchers.servers."  # run in an engine's own environment, as files
SHIM = "orchestrator.runtimes.shim"  # a program too: its modules import each other, nothing else
PURE_PARTS = {f"{PROGRAMS}pytorch_{part}" for part in ("bodies", "flags", "text", "turns")}
IMPURE_IMPORTS = {"asyncio", "httpx", "subprocess", "socket", "os", "time", "random", "threading"}
FORBIDDEN = {  # never, whatever the floors say
    "orchestrator.gateway": ("supervision", "planning", "hardware", "runtimes", "models", "admin"),
    "orchestrator.supervision": ("gateway",),
    "orchestrator.admin": ("gateway",),
    "orchestrator.engines": ("settings", "supervision", "planning", "gateway"),
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("orchestrator", "engine_launchers")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, at any depth of the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = ".".join(path.relative_to(ROOT).parent.parts)
            assert node.level == 0 or (node.level == 1 and own == SHIM), f"{path}: relative import"
            module = f"{own}.{node.module}" if node.level else node.module
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.add(whole if whole in MODULES else module)
    return found


def room(module: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    return max(
        (name for name in FLOORS if module == name or module.startswith(name + ".")), key=len
    )


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for other in imports(MODULES[module]) & set(MODULES):
        mine, theirs = room(module), room(other)
        if mine != theirs:
            assert FLOORS[theirs] < FLOORS[mine], f"{module} imports {other}"
        for prefix, banned in FORBIDDEN.items():
            if f"{module}.".startswith(f"{prefix}."):
                assert not any(other.startswith(f"orchestrator.{word}") for word in banned)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("engine_launchers")])
def test_launchers_never_import_the_orchestrator(module: str) -> None:
    assert not any(name.startswith("orchestrator") for name in imports(MODULES[module]))


def pure(module: str) -> bool:
    """Whether a module promises to do nothing but compute."""
    if module.startswith(PROGRAMS):
        return module in PURE_PARTS
    return any(module == p or module.startswith(p + ".") for p in PURE)


@pytest.mark.parametrize("module", [module for module in MODULES if pure(module)])
def test_pure_modules_do_no_io(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not roots & IMPURE_IMPORTS


def test_an_engines_program_and_ours_know_nothing_of_each_other() -> None:
    programs = {module for module in MODULES if module.startswith(PROGRAMS)}
    assert programs >= PURE_PARTS
    names = {module.rsplit(".", 1)[1] for module in programs}
    for module, path in MODULES.items():
        if module in programs:
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {"orchestrator", "engine_launchers"}
        else:
            assert not imports(path) & (programs | names)


@pytest.mark.parametrize("module", sorted(PURE_PARTS))
def test_pure_parts_of_a_program_need_nothing_installed(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    assert roots <= sys.stdlib_module_names


def test_the_bench_knows_nothing_of_what_it_measures() -> None:
    parts = {name for name in MODULES if room(name) == "orchestrator.bench"}
    assert len(parts) > 10
    ours = {other for part in parts for other in imports(MODULES[part]) & set(MODULES)}
    assert ours - parts <= {"orchestrator", "orchestrator.errors", "orchestrator.settings"}


def test_the_shim_needs_nothing_but_the_standard_library() -> None:
    parts = {name for name in MODULES if name == SHIM or name.startswith(SHIM + ".")}
    assert len(parts) > 2
    for part in parts:
        others = imports(MODULES[part]) - parts
        assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names


def test_there_is_no_circle() -> None:
    graph = {name: imports(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_small(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 350


_TELLING = (".add_event", "journal.add", "self._note", "self._event", "self._tell")
_WORDS = {"seconds", "version", "step"}  # keys of what `_tell` says to a program


def test_every_event_has_a_stable_type() -> None:
    used = {
        word.value
        for path in MODULES.values()
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(_TELLING) and call.args
        for word in ast.walk(call.args[0])
        if isinstance(word, ast.Constant) and re.fullmatch(r"[a-z]+(\.[a-z_]+)?", str(word.value))
    }
    assert used - _WORDS == set(TYPES)


def test_every_public_thing_says_what_it_is() -> None:
    silent = []
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree) and path.read_text().strip():
            silent.append(name)
        silent += [
            f"{name}.{node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
            and not _is_event(node)
        ]
    assert silent == []


def _is_event(node: ast.stmt) -> bool:
    """A dataclass whose name and fields say it all."""
    return isinstance(node, ast.ClassDef) and len(node.body) <= 3 and bool(node.decorator_list)
