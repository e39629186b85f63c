"""The fault matrix: its rows, the scenarios that prove them, and what a scenario works with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.harness import ROOT, Late, Room

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
    measured: list[float] = field(default_factory=list)

    def took(self, seconds: float) -> None:
        """Note how long a reaction took; Late beyond the row's bound."""
        self.measured.append(seconds)
        if seconds > self.row.bound_s:
            raise Late(f"{self.row.id}: {seconds:.2f} s, {self.row.bound_s:g} s are allowed")


Scenario = Callable[[Lab], None]
SCENARIOS: dict[tuple[str, str], list[Scenario]] = {}


def scenario(row: str, *engines: str) -> Callable[[Scenario], Scenario]:
    """Register a function as a proof of `row` on each of `engines`."""

    def register(function: Scenario) -> Scenario:
        for engine in engines:
            SCENARIOS.setdefault((row, engine), []).append(function)
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
