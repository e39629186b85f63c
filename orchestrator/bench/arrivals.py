"""When an open loop sends its requests. Pure: randomness comes in as `draw`, uniform in [0, 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log

KINDS = ("poisson", "constant")


def arrivals(kind: str, rate: float, draw: Callable[[], float]) -> Iterator[float]:
    """Seconds since the start at which requests are due, without end.

    `constant`: every 1/rate; `poisson`: gaps are exponential with mean 1/rate.
    """
    at, number = 0.0, 0
    while True:
        yield at
        number += 1
        if kind == "constant":
            at = number / rate  # not summed up: no rounding builds up
        else:
            at -= log(1.0 - draw()) / rate


def schedule(
    kind: str,
    rate: float,
    draw: Callable[[], float],
    requests: int | None,
    duration: float | None,
) -> list[float]:
    """All due times of a run that ends after so many requests or seconds, whichever is first."""
    due: list[float] = []
    for at in arrivals(kind, rate, draw):
        if (requests is not None and len(due) >= requests) or (
            duration is not None and at >= duration
        ):
            return due
        due.append(at)
    return due
