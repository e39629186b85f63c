"""The PyTorch engine's plans and commands: what is planned is what the server is told."""

from __future__ import annotations

import pytest

from engine_launchers import pytorch_fit
from engine_launchers.base import CrashCause, EnginePlan, Fit, Listen, Rejection, Tuning
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import CacheGroup, ModelSpec
from engine_launchers.pytorch import PyTorchLauncher
from tests.plans import artefact
from tests.unit.test_pytorch_server_parts import bodies, flags

GIB = 2**30
LAUNCHER = PyTorchLauncher()
SMALL = artefact("smollm2-135m-instruct", "BF16")
BLOCK = pytorch_fit.block_bytes(SMALL)


def machine(*free: float, vendor: str = "nvidia", ram: int = 16) -> HardwareProfile:
    """A machine with a card of 24 GiB for every number of free GiB."""
    cards = tuple(
        Gpu.model_validate(
            {"index": at, "uuid": f"u{at}", "name": "card", "vendor": vendor,
             "vram_total": 24 * GIB, "vram_free": int(each * GIB)}
        )
        for at, each in enumerate(free)
    )  # fmt: skip
    return HardwareProfile(
        gpus=cards, ram_total=ram * GIB, ram_available=ram * GIB, cpu_cores=2, platform="linux-x"
    )


def planned(
    hardware: HardwareProfile, wish: Tuning, *pins: str, model: ModelSpec = SMALL
) -> EnginePlan:
    fit = LAUNCHER.fit(model, hardware, wish, frozenset(pins))
    assert isinstance(fit, Fit), fit.why
    return EnginePlan(
        id="x", engine="pytorch", engine_version="1", tier="CPU_ONLY", model=model,
        tuning=fit.tuning, pinned=frozenset(pins), estimate=fit.estimate, gpus=fit.gpus,
    )  # fmt: skip


def told(plan: EnginePlan) -> flags.Options:  # type: ignore[name-defined]
    """The command as the server reads it."""
    return flags.parse(LAUNCHER.command(plan, Listen(port=8100)).argv[2:])


@pytest.mark.parametrize(
    ("context", "requests", "pins", "blocks"),
    [
        (2048, 1, (), 32),
        (2048, 4, (), 32 + 3 * 16),
        (2048, 4, ("max_concurrency",), 4 * 32),
        (1000, 2, (), 2 * 16),
        (65, 1, ("max_model_len",), 2),
    ],
)
@pytest.mark.parametrize("hardware", [machine(), machine(20)], ids=["processor", "card"])
def test_the_server_is_told_the_blocks_that_are_planned(
    hardware: HardwareProfile, context: int, requests: int, pins: tuple[str, ...], blocks: int
) -> None:
    plan = planned(hardware, Tuning(max_model_len=context, max_concurrency=requests), *pins)
    options = told(plan)
    assert (options.num_blocks, options.block_size) == (blocks, 64)
    assert sum(part.kv for part in plan.estimate) == blocks * BLOCK
    assert options.device == ("cuda" if hardware.gpus else "cpu")


def test_sliding_layers_are_counted_as_the_server_asks_for_them() -> None:
    group = CacheGroup(kind="sliding", layers=4, kv_heads=2, head_dim=64, v_head_dim=64, window=128)
    model = SMALL.model_copy(update={"cache_groups": (group,)})
    plan = planned(machine(), Tuning(max_model_len=2048, max_concurrency=1), model=model)
    assert told(plan).num_blocks == 32


def test_a_plan_without_an_estimate_says_no_blocks() -> None:
    plan = planned(machine(), Tuning(max_model_len=512)).model_copy(update={"estimate": ()})
    assert told(plan).num_blocks is None
    relaxed = plan.model_copy(update={"tuning": Tuning(max_concurrency=4)})
    assert LAUNCHER.relax(relaxed, CrashCause.HOST_OOM) is not None


@pytest.mark.parametrize("hardware", [machine(), machine(20)], ids=["processor", "card"])
def test_every_rung_takes_less_and_says_so(hardware: HardwareProfile) -> None:
    plan = planned(hardware, Tuning(max_model_len=2048, max_concurrency=8))
    steps = 0
    while (smaller := LAUNCHER.relax(plan, CrashCause.HOST_OOM)) is not None:
        before, after = plan.estimate[0], smaller.estimate[0]
        assert after.kv < before.kv
        assert after.activations < before.activations
        assert (after.weights, after.overhead) == (before.weights, before.overhead)
        assert (told(smaller).num_blocks or 0) * BLOCK == after.kv
        assert smaller.estimate[1:] == plan.estimate[1:]
        plan, steps = smaller, steps + 1
    assert steps == 5  # 8, 4, 2, 1 requests, then 1024 and 512 tokens


def test_the_freest_card_alone_is_used() -> None:
    plan = planned(machine(10, 22, 22), Tuning(max_model_len=512))
    assert plan.gpus == (1,)
    assert [part.device for part in plan.estimate] == ["gpu:1", "ram"]
    assert plan.estimate[0].weights >= SMALL.weight_bytes


def test_what_needs_two_cards_spills_into_ram_instead() -> None:
    large = SMALL.model_copy(update={"weight_bytes": 30 * GIB, "weights": None})
    assert isinstance(LAUNCHER.fit(large, machine(23, 23, ram=4), Tuning()), Rejection)
    plan = planned(machine(23, 23, ram=64), Tuning(max_model_len=512), model=large)
    assert plan.gpus == (0,)
    assert (plan.tuning.cpu_offload_bytes or 0) > 8 * GIB


@pytest.mark.parametrize("vendor", ["amd", "apple", "intel"])
def test_other_makers_cards_are_refused_with_a_sentence(vendor: str) -> None:
    got = LAUNCHER.fit(SMALL, machine(20, vendor=vendor), Tuning())
    assert isinstance(got, Rejection)
    assert got.why == f"drives NVIDIA GPUs or the processor, card is {vendor}"


def test_the_fields_that_the_launcher_promises_are_those_the_server_takes() -> None:
    assert LAUNCHER.quirks.completion_fields == bodies.COMPLETION_FIELDS
    assert LAUNCHER.quirks.chat_fields == bodies.CHAT_FIELDS
