"""Every flag that a launcher can say is known to the installed engine's own `--help`.

An upgrade that renames one fails here, not at a user's.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine_launchers import ENGINES, load_launcher
from engine_launchers.base import EngineName, EnginePlan, Fit, Launcher, Listen, Tuning
from engine_launchers.model import Adapter, ModelSpec
from tests.harness import clean_env
from tests.machines import machines
from tests.plans import variants

pytestmark = pytest.mark.slow
_MODELS = ("mistral-7b-instruct-v0.3", "qwen3.5-9b", "gpt-oss-20b")
_EVERYTHING = {
    "max_model_len": 4096, "max_concurrency": 3, "gpu_memory_fraction": 0.5, "dtype": "float16",
    "kv_cache_dtype": "q8_0", "tensor_parallel": 2, "pipeline_parallel": 2, "gpu_layers": -1,
    "tensor_split": (0.4, 0.6), "threads": 2, "batch": 256, "flash_attention": True,
    "cpu_offload_bytes": 2**30, "lora_rank": 8, "compile": True, "sleep": True,
}  # fmt: skip
# Said by no flag of its own: how often the engine is started, what a person says, how it is packed.
_NO_FLAG = {"replicas", "extra_args", "quantization"}
# A word of help that shows the flag: at the start of a word, and not the start of a longer one.
_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")


def test_every_field_of_a_plan_is_in_the_plan_with_everything_set() -> None:
    assert set(_EVERYTHING) | _NO_FLAG == set(Tuning.model_fields)


def plan(launcher: Launcher, model: ModelSpec, tuning: Tuning, gpus: tuple[int, ...]) -> EnginePlan:
    return EnginePlan(
        id="x", engine=launcher.name, engine_version=launcher.version, tier="CPU_ONLY",
        model=model, tuning=tuning, pinned=frozenset({"threads"}), gpus=gpus,
        aliases=("other",),
    )  # fmt: skip


def plans(launcher: Launcher) -> Iterator[EnginePlan]:
    """What fits on recorded machines, and one plan with every field set."""
    kind = next(iter(launcher.formats))
    for hardware in list(machines().values())[::5]:
        for name in _MODELS:
            for model in variants(name):
                found = launcher.fit(model, hardware, Tuning(threads=2), frozenset({"threads"}))
                if isinstance(found, Fit):
                    cards = tuple(hardware.gpus[at].index for at in found.gpus)
                    yield plan(launcher, model, found.tuning, cards)
    adapter = Adapter(name="a", path="/a", format=kind)
    for model in variants(_MODELS[0]):
        if model.format == kind:
            whole = model.model_copy(update={"adapters": (adapter,)})
            packed: list[str | None] = [None, "NF4", "INT8"]
            for quantization in packed:
                tuning = Tuning(**_EVERYTHING, quantization=quantization)
                yield plan(launcher, whole, tuning, (0, 1))
                yield plan(launcher, whole, tuning, ())


def program_of(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The words by which an interpreter is told what to run; none for an engine's own command."""
    if argv[1] == "-m" and re.fullmatch(r"\w+(\.\w+)+", argv[2]):
        return argv[1:3]
    return argv[1:2] if argv[1].endswith(".py") else ()


def said(launcher: Launcher) -> set[str]:
    """The flags of all those commands; what belongs to the interpreter is left out."""
    found: set[str] = set()
    for each in plans(launcher):
        argv = launcher.command(each, Listen(port=4711)).argv
        words = argv[1 + len(program_of(argv)) :]
        found |= {word for word in words if re.fullmatch(r"--?[a-zA-Z][\w-]*", word)}
    return found


def help_of(launcher: Launcher, program: str) -> str:
    """The engine's own help, by the words that start its server."""
    model = next(m for m in variants(_MODELS[0]) if m.format in launcher.formats)
    argv = launcher.command(plan(launcher, model, Tuning(), ()), Listen(port=4711)).argv
    start = program_of(argv)
    more = ("serve", "--help=all") if launcher.name == "vllm" else ("--help",)
    done = subprocess.run(
        [program, *start, *more], capture_output=True, text=True, timeout=300, env=clean_env()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ENGINES)
def test_every_flag_is_known_to_the_installed_engine(
    name: EngineName, installed: Callable[[EngineName], Any]
) -> None:
    launcher = load_launcher(name)
    flags = said(launcher)
    assert len(flags) > 5
    known = set(_FLAG.findall(help_of(launcher, installed(name).program)))
    assert flags <= known, f"{name} does not know {sorted(flags - known)}"
