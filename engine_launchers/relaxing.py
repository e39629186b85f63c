"""Steps down a ladder: each rung lowers one thing that nobody pinned. Shared by the launchers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from engine_launchers.base import CrashCause, EnginePlan

_HELD = 20  # rungs that a ladder may name
_SAID = {  # what people call a field
    "max_model_len": "context",
    "max_concurrency": "sequences",
    "gpu_memory_fraction": "gpu_memory_utilization",
    "gpu_layers": "layers on the GPU",
    "kv_cache_dtype": "cache",
}
_UNSET = {"kv_cache_dtype": "f16"}  # what a field without a value means


@dataclass(frozen=True)
class Rung:
    """One way to need less: the new value of `field`, None where it cannot be lowered further.

    `causes` are the failures that it helps against.
    """

    field: str
    lower: Callable[[EnginePlan], Any]
    causes: frozenset[CrashCause]


def halved(field: str, least: int) -> Callable[[EnginePlan], int | None]:
    """A rung's `lower`: half of the field, while that is not below `least`."""

    def lower(plan: EnginePlan) -> int | None:
        value = getattr(plan.tuning, field)
        return value // 2 if value and value // 2 >= least else None

    return lower


def first_rung(
    plan: EnginePlan,
    cause: CrashCause,
    rungs: Iterable[Rung],
    refit: Callable[[EnginePlan], EnginePlan],
) -> EnginePlan | None:
    """The plan after the first rung that helps against `cause` and is not pinned; None at the end.

    `refit` puts the memory estimate of the smaller plan in its place.
    """
    for rung in rungs:
        if cause not in rung.causes or rung.field in plan.pinned:
            continue
        value = rung.lower(plan)
        if value is None:
            continue
        before, said = getattr(plan.tuning, rung.field), _SAID.get(rung.field, rung.field)
        before = _UNSET.get(rung.field) if before is None else before
        smaller = plan.model_copy(
            update={
                "tuning": plan.tuning.model_copy(update={rung.field: value}),
                "rung": plan.rung + 1,
                "reasons": (*plan.reasons, f"{said} {before} -> {value} after {cause.value}"),
            }
        )
        return refit(smaller)
    return None


def ladder(
    plan: EnginePlan,
    relax: Callable[[EnginePlan, CrashCause], EnginePlan | None],
    cause: CrashCause,
) -> tuple[str, ...]:
    """What `relax` would do, rung by rung, if every smaller plan failed of `cause` again."""
    steps: list[str] = []
    current = plan
    while len(steps) < _HELD:
        smaller = relax(current, cause)
        if smaller is None:
            break
        steps.append(smaller.reasons[-1].removesuffix(f" after {cause.value}"))
        current = smaller
    return tuple(steps)


def gib(size: float) -> str:
    """Bytes for a sentence: GiB with two digits, MiB below half a GiB."""
    if abs(size) >= 2**29:
        return f"{size / 2**30:,.2f} GiB"
    return f"{size / 2**20:,.0f} MiB"
