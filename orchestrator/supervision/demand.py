"""How much clients want one model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What gateways tell of one model. `served` counts leases, `keep_alive` is the last wish."""

    waiting: int = 0
    in_flight: int = 0
    served: int = 0
    keep_alive: float | None = None
