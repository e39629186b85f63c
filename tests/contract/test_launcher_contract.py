"""Every launcher in the registry keeps the same promises; a new one is covered without new code."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from engine_launchers import ENGINES, load_launcher
from engine_launchers.base import (
    CrashCause,
    EngineName,
    EnginePlan,
    ExitResult,
    Fit,
    Launcher,
    Listen,
    Rejection,
    Tuning,
)
from engine_launchers.llama_cpp import _GGML_TYPES
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.vllm import core_ranges
from orchestrator.models.gguf_spec import model_spec
from orchestrator.resources import demo_dir
from tests.machines import machines
from tests.plans import artefact, catalog, variants

TAILS = Path(__file__).parents[1] / "fixtures" / "tails"
GIB = 2**30


def machine(ram: int, cores: int = 2, gpus: int = 0, isa: tuple[str, ...] = ()) -> HardwareProfile:
    cards = tuple(
        Gpu(index=i, uuid=f"u{i}", name="card", vendor="nvidia", vram_total=24 * GIB,
            vram_free=23 * GIB)
        for i in range(gpus)
    )  # fmt: skip
    return HardwareProfile(
        gpus=cards, ram_total=ram, ram_available=ram, cpu_cores=cores, isa=isa, platform="linux-x"
    )


MACHINES = [machine(GIB // 4), machine(GIB), machine(64 * GIB, 16), machine(64 * GIB, 8, 2)]


def demo() -> ModelSpec:
    return model_spec(demo_dir() / "demo.Q4_K_M.gguf", "demo")


def seven_b(**changes: object) -> ModelSpec:
    spec = ModelSpec(
        id="m7", source="/models/m7.gguf", format="gguf", architecture="llama",
        params=7_241_700_000, layers=32, heads=32, kv_heads=8, head_dim=128, context_max=32768,
        vocab=32000, quantization="Q4_K_M", weight_bytes=4_369_000_000,
    )  # fmt: skip
    return spec.model_copy(update=changes)


MODELS = [demo(), seven_b(), seven_b(format="safetensors"), seven_b(weight_bytes=10**12)]


@pytest.fixture(params=ENGINES)
def launcher(request: pytest.FixtureRequest) -> Launcher:
    name: EngineName = request.param
    return load_launcher(name)


def small(launcher: Launcher) -> ModelSpec:
    """A model that this engine reads and any big machine holds."""
    if "gguf" in launcher.formats:
        return demo()
    return artefact("smollm2-135m-instruct", "BF16")


def large(launcher: Launcher) -> ModelSpec:
    """7B in this engine's format."""
    if "gguf" in launcher.formats:
        return seven_b()
    return seven_b(format="safetensors", quantization="BF16", weight_bytes=14_483_000_000)


def plan_of(launcher: Launcher, fit: Fit, pinned: frozenset[str] = frozenset()) -> EnginePlan:
    return EnginePlan(
        id="x", engine=launcher.name, engine_version=launcher.version, tier="CPU_ONLY",
        model=demo(), tuning=fit.tuning, pinned=pinned, estimate=fit.estimate,
    )  # fmt: skip


def test_every_machine_and_model_gives_a_fit_or_a_reason(launcher: Launcher) -> None:
    for hardware in MACHINES:
        for model in MODELS:
            for wish in (Tuning(), Tuning(max_model_len=8192, threads=1)):
                got = launcher.fit(model, hardware, wish)
                if isinstance(got, Rejection):
                    assert got.why
                else:
                    total = sum(part.total for part in got.estimate if part.device == "ram")
                    assert total <= hardware.ram_available


def test_a_fit_on_a_big_machine_keeps_the_wish(launcher: Launcher) -> None:
    got = launcher.fit(small(launcher), machine(64 * GIB, 8), Tuning(max_model_len=1024, threads=3))
    assert isinstance(got, Fit)
    assert (got.tuning.max_model_len, got.tuning.threads) == (1024, 3)


def test_the_command_listens_where_it_is_told_and_carries_the_users_flags_last(
    launcher: Launcher,
) -> None:
    fit = launcher.fit(small(launcher), machine(64 * GIB), Tuning(extra_args=("--seed", "5")))
    assert isinstance(fit, Fit)
    spec = launcher.command(plan_of(launcher, fit), Listen(port=4711))
    assert spec.argv[-2:] == ("--seed", "5")
    assert "4711" in spec.argv
    assert "127.0.0.1" in spec.argv
    assert set(spec.injected) <= set(spec.argv)
    assert spec == type(spec).model_validate_json(spec.model_dump_json())


CAUSES = [cause for cause in CrashCause if cause.needs_smaller_plan]


@pytest.mark.parametrize("cause", CAUSES)
def test_relaxing_shrinks_ends_and_never_touches_pins(
    launcher: Launcher, cause: CrashCause
) -> None:
    fit = launcher.fit(large(launcher), machine(64 * GIB), Tuning(max_model_len=8192))
    assert isinstance(fit, Fit)
    names = list(Tuning.model_fields)
    for pinned in (frozenset[str](), frozenset({"max_model_len"}), frozenset(names)):
        plan: EnginePlan | None = plan_of(launcher, fit, pinned)
        rungs = 0
        while plan is not None:
            smaller = launcher.relax(plan, cause)
            if smaller is not None:
                assert smaller.rung == plan.rung + 1
                assert len(smaller.reasons) == len(plan.reasons) + 1
                for name in pinned:
                    assert getattr(smaller.tuning, name) == getattr(fit.tuning, name)
                assert smaller.tuning != plan.tuning
            plan, rungs = smaller, rungs + 1
            assert rungs < 20


def test_what_is_no_matter_of_size_has_no_rung(launcher: Launcher) -> None:
    fit = launcher.fit(small(launcher), machine(64 * GIB), Tuning())
    assert isinstance(fit, Fit)
    for cause in set(CrashCause) - set(CAUSES):
        assert launcher.relax(plan_of(launcher, fit), cause) is None


def test_every_recorded_failure_is_diagnosed(launcher: Launcher) -> None:
    files = sorted((TAILS / launcher.name).glob("*.txt"))
    assert len(files) >= 8
    for file in files:
        cause, code, *_ = file.name.split(".")
        died = int(code.lstrip("s"))
        exit = ExitResult(signal=died) if code.startswith("s") else ExitResult(code=died)
        assert launcher.diagnose(exit, file.read_text().splitlines()) == cause, file.name


def test_an_old_line_in_the_log_does_not_blame_a_healthy_exit(launcher: Launcher) -> None:
    tail = ["ValueError: Failed to load model from file: x"]
    assert launcher.diagnose(ExitResult(signal=9), tail) is CrashCause.KILLED
    assert launcher.diagnose(ExitResult(oom_killed=True), tail) is CrashCause.HOST_OOM
    assert launcher.diagnose(ExitResult(signal=11), []) is CrashCause.CRASHED


@pytest.mark.parametrize("name", ENGINES)
def test_the_body_fields_are_an_allow_list(name: EngineName) -> None:
    launcher = load_launcher(name)
    fields = launcher.quirks.completion_fields | launcher.quirks.chat_fields
    assert {"model", "max_tokens", "temperature", "stream"} <= fields
    assert not {"n_discard", "prompt_embeds", "kv_transfer_params", "grammar"} & fields


SOME = ("mistral-7b-instruct-v0.3", "qwen3.5-9b", "gpt-oss-20b")
RECORDED = dict(list(machines().items())[::5])  # every fifth: all kinds of cards are among them


def fits(launcher: Launcher, wish: Tuning, pinned: frozenset[str]) -> list[tuple[str, EnginePlan]]:
    """What fits of some models on those recorded machines, as plans."""
    found: list[tuple[str, EnginePlan]] = []
    for place, hardware in RECORDED.items():
        for name in SOME:
            for model in variants(name):
                got = launcher.fit(model, hardware, wish, pinned)
                if isinstance(got, Rejection):
                    assert got.why
                    assert got.unit is None or got.need is not None
                    continue
                plan = plan_of(launcher, got, pinned).model_copy(
                    update={"model": model, "gpus": tuple(hardware.gpus[i].index for i in got.gpus)}
                )
                found.append((place, plan))
    return found


def said(plan: EnginePlan) -> dict[str, str | None]:
    """The words by which a command carries each field that a plan can decide."""
    tuning = plan.tuning
    words: dict[str, object] = {
        "max_model_len": tuning.max_model_len,
        "batch": tuning.batch,
        "gpu_memory_fraction": tuning.gpu_memory_fraction,
        "dtype": tuning.dtype,
        "tensor_parallel": tuning.tensor_parallel,
        "gpu_layers": tuning.gpu_layers,
        "cpu_offload_bytes": tuning.cpu_offload_bytes,
        "max_concurrency": tuning.max_concurrency if plan.engine != "llama_cpp" else None,
        "threads": tuning.threads,
        "kv_cache_dtype": tuning.kv_cache_dtype,
    }
    if plan.engine == "llama_cpp" and tuning.kv_cache_dtype:
        words["kv_cache_dtype"] = _GGML_TYPES[tuning.kv_cache_dtype]
    if plan.engine == "llama_server":
        words["gpu_layers"] = "all" if tuning.gpu_layers == -1 else tuning.gpu_layers
        words["gpu_layers"] = words["gpu_layers"] if plan.gpus else None
    if plan.engine == "vllm":
        words["threads"] = tuning.threads if "threads" in plan.pinned else None
        if tuning.threads is not None and not plan.gpus:
            words["threads"] = core_ranges(tuning.threads, 1)
    return {name: None if word is None else str(word) for name, word in words.items()}


# By which flags; what is not here is said in another way: by the environment, or as a part.
FLAGS: dict[EngineName, dict[str, tuple[str, ...]]] = {
    "vllm": {
        "max_model_len": ("--max-model-len",), "batch": ("--max-num-batched-tokens",),
        "gpu_memory_fraction": ("--gpu-memory-utilization",), "dtype": ("--dtype",),
        "tensor_parallel": ("--tensor-parallel-size",), "max_concurrency": ("--max-num-seqs",),
        "kv_cache_dtype": ("--kv-cache-dtype",),
    },
    "llama_server": {
        "max_model_len": ("--kv-unified-per-slot",), "batch": ("-b",), "threads": ("-t", "-tb"),
        "gpu_layers": ("-ngl",), "max_concurrency": ("-np",), "kv_cache_dtype": ("-ctk", "-ctv"),
    },
    "llama_cpp": {
        "max_model_len": ("--n_ctx",), "batch": ("--n_batch",),
        "threads": ("--n_threads", "--n_threads_batch"), "gpu_layers": ("--n_gpu_layers",),
        "kv_cache_dtype": ("--type_k", "--type_v"),
    },
    "pytorch": {
        "max_model_len": ("--max-model-len",), "max_concurrency": ("--max-num-seqs",),
        "dtype": ("--dtype",), "threads": ("--threads",), "batch": ("--max-batch-tokens",),
        "cpu_offload_bytes": ("--cpu-offload-bytes",),
    },
}  # fmt: skip


def test_the_command_carries_every_decided_field(launcher: Launcher) -> None:
    plans = fits(launcher, Tuning(threads=3), frozenset({"threads"}))
    assert len(plans) > 10
    for place, plan in plans:
        spec = launcher.command(plan, Listen(port=4711))
        everywhere = {*spec.argv, *spec.env.values()}
        for field, word in said(plan).items():
            where = f"{place}: {plan.model.id}: {field} {word}"
            if word is None:
                continue
            assert word in everywhere, where
            for flag in FLAGS[launcher.name].get(field, ()):
                assert (flag, word) in pairwise(spec.argv), where
        if plan.tuning.tensor_split:
            shares = tuple(str(share) for share in plan.tuning.tensor_split)
            assert set(shares) <= everywhere or ",".join(shares) in everywhere


def test_pins_survive_every_rung_on_every_machine(launcher: Launcher) -> None:
    for pinned in (frozenset({"max_model_len"}), frozenset({"max_model_len", "gpu_layers"})):
        for _, plan in fits(launcher, Tuning(max_model_len=2048), pinned):
            assert plan.tuning.max_model_len == 2048
            for cause in CAUSES:
                current: EnginePlan | None = plan
                for _ in range(60):
                    current = launcher.relax(current, cause) if current else None
                    if current is None:
                        break
                    for field in pinned:
                        assert getattr(current.tuning, field) == getattr(plan.tuning, field)
                assert current is None


def test_a_fit_uses_cards_that_are_there_and_no_more_than_they_have(launcher: Launcher) -> None:
    for place, hardware in RECORDED.items():
        for model in variants(catalog().names()[0]):
            got = launcher.fit(model, hardware, Tuning(flash_attention=True))
            if isinstance(got, Rejection):
                continue
            assert set(got.gpus) <= set(range(len(hardware.gpus))), place
            for part in got.estimate:
                assert part.total <= part.capacity - part.others + 2**25, (place, part)
