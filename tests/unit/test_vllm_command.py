"""What `vllm serve` is told, and how it is sized in RAM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine_launchers.base import CrashCause, EnginePlan, Fit, LaunchSpec, Listen, Rejection, Tuning
from engine_launchers.model import Adapter
from engine_launchers.vllm import VllmLauncher, core_ranges
from tests.plans import GIB, artefact, box, planned, variants

SMALL = "smollm2-135m-instruct"  # 9 heads, 3 KV heads, 8192 tokens
PINNED = frozenset({"max_concurrency", "tensor_parallel"})


def adapter(name: str = "a", path: str = "/adapters/a", rank: int = 24) -> Adapter:
    return Adapter(name=name, path=path, format="safetensors", rank=rank)


def plan(
    *adapters: Adapter, gpus: tuple[int, ...] = (), source: str = "/m", **tuning: Any
) -> EnginePlan:
    model = artefact(SMALL, "BF16").model_copy(update={"adapters": adapters, "source": source})
    return EnginePlan(
        id="x", engine="vllm", engine_version="0.32.0", tier="T", model=model,
        tuning=Tuning(**tuning), gpus=gpus,
    )  # fmt: skip


def command(plan: EnginePlan) -> LaunchSpec:
    return VllmLauncher().command(plan, Listen(port=4711))


def value(spec: LaunchSpec, flag: str) -> str | None:
    """What follows a flag; None where it is not said."""
    return spec.argv[spec.argv.index(flag) + 1] if flag in spec.argv else None


def fit(ram_gb: float = 16, cpus: int = 4, **wish: Any) -> Fit | Rejection:
    hardware = box("none", ram_gb=ram_gb, cpus=cpus)
    return VllmLauncher().fit(artefact(SMALL, "BF16"), hardware, Tuning(**wish), PINNED)


def test_the_program_is_the_console_command() -> None:
    spec = command(plan()).with_engine("/envs/v/bin/vllm")
    assert spec.argv[:3] == ("/envs/v/bin/vllm", "serve", "/m")


def test_adapters_are_named_with_room_for_all_and_the_next_rank_that_there_is() -> None:
    spec = command(plan(adapter(), adapter("b,c", "/b=/c", rank=8)))
    assert value(spec, "--max-lora-rank") == "32"
    assert value(spec, "--max-loras") == "2"
    at = spec.argv.index("--lora-modules")
    assert spec.argv[at + 1] == "a=/adapters/a"
    assert json.loads(spec.argv[at + 2]) == {"name": "b,c", "path": "/b=/c"}
    assert "--enable-lora" not in command(plan()).argv


def test_a_context_that_nobody_chose_is_vllms_to_find_on_a_gpu() -> None:
    assert value(command(plan(gpus=(0,))), "--max-model-len") == "auto"
    assert value(command(plan()), "--max-model-len") is None
    assert value(command(plan(gpus=(0,), max_model_len=512)), "--max-model-len") == "512"


def test_a_quantization_is_said_only_where_the_artefact_does_not_say_it() -> None:
    assert value(command(plan(gpus=(0,), quantization="FP8")), "--quantization") == "fp8"
    awq = next(each for each in variants("mistral-7b-instruct-v0.3") if each.quantization == "AWQ")
    told = plan(gpus=(0,), quantization="AWQ").model_copy(update={"model": awq})
    assert value(command(told), "--quantization") is None


def test_sleep_is_for_gpus() -> None:
    awake, asleep = command(plan(sleep=True)), command(plan(sleep=True, gpus=(0,)))
    assert "--enable-sleep-mode" not in awake.argv
    assert "--enable-sleep-mode" in asleep.argv
    assert asleep.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in command(plan(gpus=(0,))).env


def test_on_the_processor_it_starts_without_compiling() -> None:
    assert "--enforce-eager" in command(plan()).injected
    assert "--enforce-eager" not in command(plan(gpus=(0,))).argv


def test_what_we_add_comes_before_the_users_words_and_is_told_apart() -> None:
    spec = command(plan(extra_args=("--shutdown-timeout", "1")))
    assert spec.argv[-2:] == ("--shutdown-timeout", "1")
    ours = len(spec.injected)
    assert spec.argv[-2 - ours : -2] == spec.injected


def test_local_files_ask_no_hub() -> None:
    assert command(plan()).env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in command(plan(source="hf://owner/name")).env


@pytest.mark.parametrize(
    ("cores", "ranks", "ranges"),
    [(2, 2, "0|1"), (8, 2, "0-3|4-7"), (7, 3, "0-1|2-3|4-5"), (4, 1, "0-3"), (1, 2, "0|1")],
)
def test_workers_share_the_cores(cores: int, ranks: int, ranges: str) -> None:
    assert core_ranges(cores, ranks) == ranges


def test_workers_on_the_processor_when_asked_for() -> None:
    got = planned(SMALL, box("none", cpus=8), force_backend="vllm", tensor_parallel_size=3)
    assert got.tuning.tensor_parallel == 3
    spec = command(got)
    assert spec.env["VLLM_CPU_OMP_THREADS_BIND"] == "0-1|2-3|4-5"
    assert value(spec, "--kv-cache-memory-bytes") == str(got.estimate[0].kv // 3)


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"tensor_parallel": 2}, "9 heads do not divide"),
        ({"tensor_parallel": 9}, "needs a core for each worker"),
        ({"pipeline_parallel": 2}, "needs GPUs"),
    ],
)
def test_what_the_processor_cannot(wish: dict[str, int], why: str) -> None:
    got = fit(**wish)
    assert isinstance(got, Rejection)
    assert why in got.why


def test_the_cache_in_ram_holds_what_was_asked_in_whole_blocks_and_no_more() -> None:
    got = fit(max_model_len=1000, max_concurrency=3)
    assert isinstance(got, Fit)
    per_token = 30 * 2 * 3 * 64 * 2
    assert got.estimate[0].kv == (3 * 1024 + 128) * per_token
    huge = fit(ram_gb=3, max_model_len=8192, max_concurrency=64)
    assert isinstance(huge, Fit | Rejection)
    if isinstance(huge, Fit):
        assert huge.estimate[0].total < 3 * GIB


def test_what_memory_could_not_hold_shrinks_and_a_cache_too_small_keeps_its_size() -> None:
    got = fit(max_model_len=8192, max_concurrency=1)
    assert isinstance(got, Fit)
    before = plan().model_copy(update={"tuning": got.tuning, "estimate": got.estimate})
    longer = VllmLauncher().relax(before, CrashCause.KV_CACHE_TOO_SMALL)
    assert longer is not None
    assert longer.estimate[0].kv == before.estimate[0].kv
    held, smaller = [before.estimate[0].total], before
    while relaxed := VllmLauncher().relax(smaller, CrashCause.HOST_OOM):
        smaller = relaxed
        held.append(smaller.estimate[0].total)
    assert len(held) > 3
    assert held == sorted(held, reverse=True)


def test_adapters_it_cannot_apply_are_refused() -> None:
    model = artefact(SMALL, "BF16")
    for odd in (adapter(rank=1024), adapter().model_copy(update={"format": "gguf"})):
        got = VllmLauncher().fit(
            model.model_copy(update={"adapters": (odd,)}), box("none"), Tuning()
        )
        assert isinstance(got, Rejection)
