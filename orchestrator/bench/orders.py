"""What a worker is told and what it answers, as JSON lines over its pipes. Pure.

The key travels inside the first pipe and nowhere else: not in argv, not in the environment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.bench.lengths import Length
from orchestrator.bench.targets import Target
from orchestrator.bench.workload import Workload


@dataclass(frozen=True)
class Asking:
    """How one target is asked."""

    target: Target
    model: str | None
    key: str | None = field(repr=False, default=None)
    stream: bool = True
    timeout: float = 600.0
    more: dict[str, Any] = field(default_factory=dict)  # temperature, usage, fields


@dataclass(frozen=True)
class Order:
    """One phase of one worker.

    Closed loop: `users` ask without a pause, numbers first, first + step, ... below `end` (None:
    without end) until `duration` seconds are over. Open loop: `due` has the moments, seconds since
    the start, of those numbers. `at` is the start, a moment of perf_counter, which is one clock for
    all processes of a machine; the past means at once.
    """

    asking: Asking
    workload: Workload
    at: float
    first: int = 0
    step: int = 1
    end: int | None = None
    duration: float | None = None
    users: int = 0
    due: list[float] | None = None


@dataclass(frozen=True)
class Effort:
    """What measuring cost one worker: seconds; `lag` percentiles of its event loop's lateness."""

    cpu: float
    wall: float
    lag_p50: float
    lag_p99: float
    lag_max: float
    connects: int

    @property
    def share(self) -> float:
        """CPU time over wall time: 1 is a whole core."""
        return self.cpu / self.wall if self.wall > 0 else 0.0


def order_line(order: Order) -> bytes:
    """An order on one line."""
    return json.dumps(asdict(order)).encode() + b"\n"


def read_order(line: bytes) -> Order:
    """The order behind `order_line`."""
    value = json.loads(line)
    asking, workload = value.pop("asking"), value.pop("workload")
    target = Target(**asking.pop("target"))
    prompt, output = Length(**workload.pop("prompt")), Length(**workload.pop("output"))
    return Order(
        asking=Asking(target=target, **asking),
        workload=Workload(prompt=prompt, output=output, **workload),
        **value,
    )
