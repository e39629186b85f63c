"""Percentiles and histograms. Pure; lists in, numbers out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor
from typing import Any

_BINS = 40
_WIDE = 20.0  # the largest over the smallest value from which bins grow instead of being equal


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of sorted values lie, linear between neighbours.

    position = share * (n - 1); the definition that numpy has as its default. ValueError if empty.
    """
    if not ordered:
        raise ValueError("no values")
    position = share * (len(ordered) - 1)
    low, high = ordered[floor(position)], ordered[ceil(position)]
    return low + (high - low) * (position - floor(position))


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: `counts[i]` values lie in edges[i] <= x < edges[i + 1].

    The last bin holds its upper edge too. There is one edge more than there are counts.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(ordered: Sequence[float], bins: int = _BINS) -> Histogram:
    """A histogram of sorted values from the smallest to the largest; empty for none.

    Bins are equally wide, or grow by a constant factor where the values span more than a factor
    of 20, which a few slow requests make of any latency.
    """
    if not ordered:
        return Histogram((), ())
    low, high = ordered[0], ordered[-1]
    if high <= low:
        return Histogram((low, high), (len(ordered),))
    if low > 0 and high / low > _WIDE:
        inner = [low * (high / low) ** (i / bins) for i in range(1, bins)]
    else:
        inner = [low + (high - low) * i / bins for i in range(1, bins)]
    # Rounding may make neighbours meet, or leave the range, where all values nearly agree.
    edges = [low, *sorted({edge for edge in inner if low < edge < high}), high]
    places = [bisect_left(ordered, edge) for edge in edges[:-1]] + [len(ordered)]
    return Histogram(tuple(edges), tuple(b - a for a, b in pairwise(places)))


@dataclass(frozen=True)
class Spread:
    """How one figure is spread over requests (or gaps), in seconds or whatever went in."""

    count: int
    mean: float
    low: float
    p50: float
    p90: float
    p95: float
    p99: float
    high: float
    shape: Histogram

    def to_json(self) -> dict[str, Any]:
        """For the JSON report."""
        return {
            "count": self.count, "mean": self.mean, "min": self.low, "p50": self.p50,
            "p90": self.p90, "p95": self.p95, "p99": self.p99, "max": self.high,
            "histogram": {"edges": list(self.shape.edges), "counts": list(self.shape.counts)},
        }  # fmt: skip


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of values in any order; None where there are none."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99))
    mean = sum(ordered) / len(ordered)
    return Spread(
        len(ordered), mean, ordered[0], p50, p90, p95, p99, ordered[-1], histogram(ordered)
    )
