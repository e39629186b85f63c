"""What a run shall do, and what came of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.bench.orders import Asking, Effort
from orchestrator.bench.records import Record
from orchestrator.bench.workload import Workload


@dataclass(frozen=True)
class Load:
    """How much of what is asked, of each target. Open loop where `rate` is set, else closed."""

    workload: Workload
    users: int = 10
    rate: float | None = None
    arrivals: str = "poisson"
    requests: int | None = None
    duration: float | None = None
    warmup: int = 0
    rounds: int = 1
    processes: int = 1

    @property
    def requests_a_round(self) -> int | None:
        """Rounded up, so that a run asks no less than was wanted."""
        return None if self.requests is None else -(-self.requests // self.rounds)


@dataclass
class Side:
    """One target and all that came of it, a list of records per round."""

    asking: Asking
    words_per_token: float | None
    rounds: list[list[Record]]
    efforts: list[Effort]
