"""What was learned by running a plan, and the next plan made with it. Pure.

An experience counts for one key: the model in one precision and context, the engine in one version,
the devices. Whatever of them changes, the key is another one and nothing is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from engine_launchers.base import EngineName, EnginePlan, Expected, MemoryEstimate, Tuning
from engine_launchers.machine import HardwareProfile
from engine_launchers.relaxing import gib
from engine_launchers.value import Value

# What rungs lower. Of a number the smaller one holds (-1 layers are all of them).
_NUMBERS = ("max_model_len", "max_concurrency", "batch", "gpu_memory_fraction", "gpu_layers")
_WORDS = ("kv_cache_dtype", "quantization")
_NO_MEMORY = {"threads"}  # fields that memory does not depend on
# Fields that one stream's decode does not depend on.
_NO_SPEED = {"max_model_len", "max_concurrency", "gpu_memory_fraction", "replicas", "sleep"}
_ALL = float("inf")
_NEAR = 0.05  # a measured size that is nearer to the estimate is no news


class Key(Value):
    """What an experience holds for. `weight_bytes` tells two artefacts of one precision apart.

    `context` is that of the plan as it was made, before any rung. `devices` are the names of the
    GPUs that the plan uses, or the processor with its usable cores.
    """

    model: str
    quantization: str
    weight_bytes: int = Field(ge=0)
    context: int | None
    engine: EngineName
    version: str
    devices: tuple[str, ...]

    @property
    def name(self) -> str:
        """A short name of the whole key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Experience(Value):
    """What one key has shown: the rung that held with its tuning, and what was measured with it.

    `estimate` is that of the plan which held. `memory` is the most that the engine held, in bytes
    per device ("ram" or "gpu:0"). `tokens_per_second` is one stream's decode. `at` is when that was
    seen last, seconds since the epoch. None, or a device left out: not measured.
    """

    key: Key
    at: float = Field(ge=0, allow_inf_nan=False)
    rung: int = Field(0, ge=0)
    tuning: Tuning
    estimate: tuple[MemoryEstimate, ...] = ()
    memory: dict[str, int] = Field(default_factory=dict)
    load_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)


def key_of(plan: EnginePlan, hardware: HardwareProfile) -> Key:
    """The key of a plan as it was made: ask before a rung, or an experience, has changed it."""
    names = {gpu.index: gpu.name for gpu in hardware.gpus}
    processor = f"{hardware.cpu_name or 'cpu'}, {hardware.cpu_cores} cores"
    return Key(
        model=plan.model.id,
        quantization=plan.model.quantization,
        weight_bytes=plan.model.weight_bytes,
        context=plan.tuning.max_model_len,
        engine=plan.engine,
        version=plan.engine_version,
        devices=tuple(names.get(at, f"gpu {at}") for at in plan.gpus) or (processor,),
    )


def experienced(plan: EnginePlan, experience: Experience | None) -> EnginePlan:
    """The plan with what is known of its key: from the rung that held, with measured figures.

    Nothing pinned is changed, and nothing becomes more than the plan has: the machine may have less
    room than it had then. Figures are taken where they were measured with the very same tuning.
    """
    if experience is None:
        return plan
    when = f"{datetime.fromtimestamp(experience.at, UTC):%Y-%m-%d}"
    reasons: list[str] = []
    update: dict[str, Any] = {}
    lowered = _lowered(plan, experience)
    if lowered:
        update["tuning"] = plan.tuning.model_copy(update=lowered)
        update["rung"] = experience.rung
        told = ", ".join(
            f"{name} {getattr(plan.tuning, name)} -> {value}" for name, value in lowered.items()
        )
        reasons.append(f"{told}: what held here on {when}, after {experience.rung} failures")
    if _alike(update.get("tuning", plan.tuning), experience.tuning):
        held = {each.device: each for each in experience.estimate} if lowered else {}
        update["estimate"] = tuple(
            _measured(each, held.get(each.device, each), experience.memory)
            for each in plan.estimate
        )
        for old, new in zip(plan.estimate, update["estimate"], strict=True):
            if abs(old.total - new.total) > _NEAR * old.total:
                now, then = gib(new.total), gib(old.total)
                reasons.append(f"measured here on {when}, {old.device}: {now}, not {then}")
    speed = experience.tokens_per_second
    if speed and _as_fast(update.get("tuning", plan.tuning), experience.tuning):
        update["expected"] = _spoken(plan.expected, speed, when)
        told = f"measured here on {when}: {speed:.1f} tokens/s for one stream"
        reasons.append(told + _surprise(plan.expected, speed))
    if experience.load_seconds is not None:
        reasons.append(f"loaded in {experience.load_seconds:.1f} s here on {when}")
    return plan.model_copy(update={**update, "reasons": (*plan.reasons, *reasons)})


def _lowered(plan: EnginePlan, experience: Experience) -> dict[str, Any]:
    """The fields of the tuning that held which are below the plan's, and not pinned."""
    if experience.rung <= plan.rung:
        return {}
    found: dict[str, Any] = {}
    for name in (*_NUMBERS, *_WORDS):
        have, held = getattr(plan.tuning, name), getattr(experience.tuning, name)
        if name in plan.pinned or held is None or held == have:
            continue
        if name in _WORDS or _size(held) < _size(have):
            found[name] = held
    return found


def _size(value: float | None) -> float:
    return _ALL if value is None or value < 0 else value


def _alike(one: Tuning, other: Tuning) -> bool:
    """Whether two tunings take the same memory."""
    return one.model_dump(exclude=_NO_MEMORY) == other.model_dump(exclude=_NO_MEMORY)


def _as_fast(one: Tuning, other: Tuning) -> bool:
    """Whether one stream is decoded alike with two tunings."""
    return one.model_dump(exclude=_NO_SPEED) == other.model_dump(exclude=_NO_SPEED)


def _surprise(expected: Expected, speed: float) -> str:
    """What was expected instead, where the speed lies outside of it."""
    if expected.tokens_per_second is None:
        return ""
    low, high = expected.tokens_per_second
    return "" if low <= speed <= high else f", not {low:.1f} to {high:.1f}"


def _measured(
    part: MemoryEstimate, held: MemoryEstimate, memory: Mapping[str, int]
) -> MemoryEstimate:
    """The estimate of the tuning that held on a device, with the measured total.

    Weights and cache are known by their shapes: an engine that has not yet touched all of them
    seems smaller than it will be, so the total never falls below those two.
    """
    update = held.model_dump(include={"weights", "kv", "activations", "overhead"})
    if (found := memory.get(part.device)) is not None:
        rest = max(0, found - held.weights - held.kv)
        update["activations"] = min(held.activations, rest)
        update["overhead"] = rest - update["activations"]
    return part.model_copy(update=update)


def _spoken(expected: Expected, speed: float, when: str) -> Expected:
    return expected.model_copy(
        update={"tokens_per_second": (speed, speed), "source": f"measured here on {when}"}
    )


def merged(
    known: Experience | None,
    plan: EnginePlan,
    key: Key,
    at: float,
    memory: Mapping[str, int],
    load_seconds: float | None,
    tokens_per_second: float | None,
) -> Experience:
    """What is known after `plan` was seen to hold.

    With the tuning that is known already the most memory ever seen stays, and what was not measured
    now; with another tuning, nothing of what was known counts any more.
    """
    same = known if known and known.rung == plan.rung and known.tuning == plan.tuning else None
    peaks = dict(same.memory) if same else {}
    for device, size in memory.items():
        peaks[device] = max(size, peaks.get(device, 0))
    return Experience(
        key=key,
        at=at,
        rung=plan.rung,
        tuning=plan.tuning,
        estimate=plan.estimate,
        memory=peaks,
        load_seconds=load_seconds if load_seconds is not None else same and same.load_seconds,
        tokens_per_second=tokens_per_second or (same and same.tokens_per_second),
    )
