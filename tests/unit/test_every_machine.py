"""Every machine and every model: a plan or a refusal with numbers, in no time, never an exception.

The recorded machines with the whole catalog, then machines made at random with random pins.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine_launchers.base import CrashCause, EnginePlan
from engine_launchers.machine import Gpu, HardwareProfile
from orchestrator.errors import NoEngineFits
from orchestrator.planning.planner import Wish
from tests.examples import examples
from tests.harness import SLACK as BUSY
from tests.machines import machines
from tests.plans import GIB, catalog, launchers, planned, table, variants

LIMIT_S = 0.05 * BUSY
SLACK = 32 * 2**20  # rounding of shares to two digits, and of megabytes
MODELS = catalog().names()
MACHINES = machines()
# What a smaller plan can still be lowered to: below, a ladder may be empty.
LEAST_CONTEXT = 1024


def timed(name: str, hardware: HardwareProfile, **pins: Any) -> tuple[EnginePlan | None, str]:
    """(plan, "") or (None, refusal); fails where the best of three takes too long."""
    plan, said, best = None, "", float("inf")
    for _ in range(3):
        begun = time.process_time()
        try:
            plan, said = planned(name, hardware, **pins), ""
        except NoEngineFits as error:
            plan, said = None, error.message
        best = min(best, time.process_time() - begun)
        if best <= LIMIT_S:
            break
    assert best <= LIMIT_S, f"{name}: {best * 1000:.0f} ms"
    return plan, said


def check(plan: EnginePlan, hardware: HardwareProfile) -> None:
    """What has to hold of any plan."""
    for part in plan.estimate:
        room = part.capacity - part.others
        assert part.total <= room + SLACK, f"{plan.id}: {part} takes more than is free"
        assert min(part.weights, part.kv, part.activations, part.overhead) >= 0
    indices = {gpu.index for gpu in hardware.gpus}
    assert set(plan.gpus) <= indices
    assert {p.device for p in plan.estimate} <= {f"gpu:{i}" for i in plan.gpus} | {"ram"}
    assert plan.tuning.max_model_len is not None
    assert 1 <= plan.tuning.max_model_len <= plan.model.context_max
    assert (plan.tuning.max_concurrency or 1) >= 1
    assert re.fullmatch(
        r"(vllm|llama-server|llama-cpp|pytorch)-[a-z0-9-]+-tp\d+(-pp\d+)?(-lora)?", plan.id
    )
    ranks = (plan.tuning.tensor_parallel or 1) * (plan.tuning.pipeline_parallel or 1)
    if plan.engine == "vllm" and plan.gpus:
        assert ranks == len(plan.gpus)
    assert plan.reasons
    assert all(rejection.why for rejection in plan.rejected)
    assert len(plan.rejected) == len(set(plan.rejected))
    if plan.tuning.max_model_len > LEAST_CONTEXT:
        assert plan.ladder


@pytest.mark.slow  # some seconds in all
@pytest.mark.parametrize("name", MACHINES)
def test_every_recorded_machine_with_the_whole_catalog(name: str) -> None:
    hardware = MACHINES[name]
    for model in MODELS:
        plan, said = timed(model, hardware)
        if plan is None:
            assert re.search(r"\d", said), said
        else:
            check(plan, hardware)


def made(rows: list[int], free: list[float], ram_gb: float, ram_free: float) -> HardwareProfile:
    gpus = []
    for at, (row, share) in enumerate(zip(rows, free, strict=False)):
        spec = table().gpus[row]
        size = spec.reported_mib * 2**20 if spec.reported_mib else int(spec.memory_gb * GIB * 0.98)
        gpus.append(
            Gpu(
                index=at, uuid=f"u{at}", name=spec.name, vendor=spec.vendor, vram_total=size,
                vram_free=int(size * share), compute_capability=spec.compute_capability,
                memory_bandwidth=spec.bandwidth,
            )
        )  # fmt: skip
    ram = int(ram_gb * GIB)
    return HardwareProfile(
        gpus=tuple(gpus), ram_total=ram, ram_available=int(ram * ram_free), cpu_cores=8,
        platform="linux-x86_64",
    )  # fmt: skip


SHARES = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))
HARDWARE = st.builds(
    made,
    st.one_of(
        st.lists(st.integers(0, len(table().gpus) - 1), max_size=8),
        st.builds(
            lambda row, n: [row] * n, st.integers(0, len(table().gpus) - 1), st.integers(1, 8)
        ),
    ),
    st.lists(SHARES, min_size=8, max_size=8),
    st.floats(1, 512),
    SHARES,
)
PINS = st.fixed_dictionaries(
    {},
    optional={
        "goal": st.sampled_from(["throughput", "latency", "quality", "memory"]),
        "context": st.sampled_from([512, 4096, 10_000, 131_072]),
        "threads": st.integers(1, 16),
        "quantization": st.sampled_from(["4bit", "8bit", "none"]),
        "tensor_parallel_size": st.sampled_from([1, 2, 3, 4, 8]),
        "gpu_memory_utilization": st.sampled_from([0.3, 0.5, 0.9, 1.0]),
        "gpu_layers": st.sampled_from([0, 5, 20, 99]),
        "users": st.integers(1, 64),
        "force_backend": st.sampled_from(["vllm", "llama_server", "llama_cpp", "pytorch"]),
    },
)
BITS = {"4bit": (4, 4), "8bit": (8, 8), "none": (16, 32)}
FIELDS = {
    "context": "max_model_len",
    "threads": "threads",
    "tensor_parallel_size": "tensor_parallel",
    "gpu_memory_utilization": "gpu_memory_fraction",
    "gpu_layers": "gpu_layers",
    "users": "max_concurrency",
}


@given(hardware=HARDWARE, model=st.sampled_from(MODELS), pins=PINS)
@settings(
    max_examples=examples(500),
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # explaining traces, which is slow
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_machines_and_wishes(
    hardware: HardwareProfile, model: str, pins: dict[str, Any]
) -> None:
    plan, said = timed(model, hardware, **pins)
    if plan is None:
        assert re.search(r"\d", said), said
        return
    check(plan, hardware)
    for setting, field in FIELDS.items():
        if setting in pins:
            assert field in plan.pinned
            assert getattr(plan.tuning, field) == pins[setting], f"{plan.id}: {field}"
    if "force_backend" in pins:
        assert plan.engine == pins["force_backend"]
    launcher = launchers()[plan.engine]
    for cause in (CrashCause.GPU_OOM, CrashCause.HOST_OOM):
        relaxed: EnginePlan | None = plan
        while relaxed is not None:
            for field in plan.pinned - {"quantization"}:
                assert getattr(relaxed.tuning, field) == getattr(plan.tuning, field)
            relaxed = launcher.relax(relaxed, cause)


def test_the_pinned_names_are_those_of_the_wish() -> None:
    everything = Wish(max_model_len=1, threads=1, quantization="4bit", tensor_parallel=1,
                      gpu_memory_fraction=0.5, gpu_layers=1, users=1)  # fmt: skip
    assert everything.pinned() == {*FIELDS.values(), "quantization"}
    assert variants(MODELS[0])
