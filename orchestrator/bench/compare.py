"""Two targets measured in turns: per-round ratios and their medians. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from orchestrator.bench.figures import Figures

RATES = ("output_rate", "request_rate")
COMPARED = (*RATES, "ttft.p50", "ttft.p99", "itl.p50", "itl.p99", "tpot.p50", "e2e.p50")


@dataclass(frozen=True)
class Ratio:
    """One figure, second target over first; `rounds` has one ratio a round."""

    name: str
    first: float
    second: float
    rounds: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    def to_json(self) -> dict[str, Any]:
        """For the JSON report; figures are medians over the rounds, times in seconds."""
        return {
            "figure": self.name, "first": self.first, "second": self.second,
            "ratio": self.ratio, "min": min(self.rounds), "max": max(self.rounds),
            "rounds": list(self.rounds),
        }  # fmt: skip


def ratios(first: Sequence[Figures], second: Sequence[Figures]) -> list[Ratio]:
    """Every figure that both have in at least one round; rounds that lack it are left out."""
    found = []
    for name in COMPARED:
        both = [(a.value(name), b.value(name)) for a, b in zip(first, second, strict=True)]
        pairs = [(a, b) for a, b in both if a and b is not None]
        if pairs:
            mids = median(a for a, _ in pairs), median(b for _, b in pairs)
            found.append(Ratio(name, *mids, tuple(b / a for a, b in pairs)))
    return found
