"""The fault matrix: its rows, the scenarios that prove them, and what a scenario works with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.harness import ROOT, SLACK, Late, Room

MATRIX = ROOT / "tests" / "faults.yaml"


@dataclass(frozen=True)
class Row:
    """One fault of the matrix."""

    id: str
    title: str
    injection: str
    expectation: str
    bound_s: float
    engines: tuple[str, ...]


@dataclass
class Lab:
    """One run of one scenario: a maker of servers on its engine, and the clock it is held to."""

    row: Row
    engine: str
    make: Callable[..., Room]
    folder: Path
    measured: list[tuple[str, float]] = field(default_factory=list)

    def took(self, seconds: float, row: str | None = None) -> None:
        """Note how long a reaction took, for this row or another; Late far beyond its bound."""
        held = rows()[row] if row else self.row
        self.measured.append((held.id, seconds))
        if seconds > SLACK * held.bound_s:
            raise Late(f"{held.id}: {seconds:.2f} s, {SLACK:g} x {held.bound_s:g} s are allowed")


Scenario = Callable[[Lab], None]
SCENARIOS: dict[tuple[str, str], list[Scenario]] = {}
ALSO: set[tuple[str, str]] = set()


def scenario(row: str, *engines: str, also: tuple[str, ...] = ()) -> Callable[[Scenario], Scenario]:
    """Register a function as a proof of `row` on each of `engines`.

    It proves the rows in `also` too: engines that take a minute to start are started once for them.
    """

    def register(function: Scenario) -> Scenario:
        for engine in engines:
            SCENARIOS.setdefault((row, engine), []).append(function)
            ALSO.update((other, engine) for other in also)
        return function

    return register


def rows() -> dict[str, Row]:
    """The matrix, by row."""
    with MATRIX.open() as file:
        loaded: dict[str, dict[str, Any]] = yaml.safe_load(file)
    return {
        name: Row(name, **{**values, "engines": tuple(values["engines"])})
        for name, values in loaded.items()
    }


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile of some seconds."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
