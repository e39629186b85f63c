"""The one runner of the fault matrix: every scenario of every row, on every engine it names."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import real_room
from tests.faults import scenarios
from tests.faults.lab import ALSO, SCENARIOS, Lab, Row, Scenario, rows
from tests.harness import Late, Room, fake_room, processes_of

for _each in pkgutil.iter_modules(scenarios.__path__):
    importlib.import_module(f"{scenarios.__name__}.{_each.name}")
ROWS = rows()
# A machine that does something else for seconds is no fault of ours; all else is. Real engines take
# minutes, and are tried once more only.
_TRIES = {"fake": 3, "vllm": 3}
_FAKES = ("fake", "container")  # the second is the first, in a container
_SHORT = [pytest.mark.slow, pytest.mark.timeout(300)]
_MARKS = {"fake": _SHORT, "container": [*_SHORT, pytest.mark.docker]}
_REAL = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(1800)]


def _proofs() -> list[object]:
    return [
        pytest.param(
            ROWS[row], engine, function, id=f"{row}-{engine}-{function.__name__}",
            marks=_MARKS.get(engine, _REAL),
        )
        for (row, engine), functions in sorted(SCENARIOS.items())
        for function in functions
    ]  # fmt: skip


@pytest.mark.parametrize(("row", "engine", "function"), _proofs())
def test_fault(
    row: Row,
    engine: str,
    function: Scenario,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    engines = None
    if engine not in _FAKES:
        request.getfixturevalue("installed")(engine)
        engines = request.getfixturevalue("engines_dir")
    tries = _TRIES.get(engine, 2)
    for number in range(1, tries + 1):
        try:
            lab = _run(row, engine, function, tmp_path / str(number), engines)
            break
        except Late:
            if number == tries:
                raise
    if out := os.environ.get("FAULTS_OUT"):
        with Path(out).open("a") as file:
            for name in sorted({name for name, _ in lab.measured}):
                seconds = [each for measured, each in lab.measured if measured == name]
                told = {"row": name, "engine": engine, "seconds": seconds}
                file.write(json.dumps(told) + "\n")


def _run(row: Row, engine: str, function: Scenario, folder: Path, engines: Path | None) -> Lab:
    """One try, in a folder of its own; nothing of it is left."""
    made: list[Room] = []

    def make(*flags: str, name: str = "data", **settings: Any) -> Room:
        if engines is None:
            room = fake_room(folder / name, *flags, **settings)
        else:
            room = real_room(folder / name, engines, "--engine", engine, *flags)
            room.env.update({f"ENGINEROOM_{k.upper()}": str(v) for k, v in settings.items()})
        made.append(room)
        return room

    folder.mkdir()
    lab = Lab(row, engine, make, folder)
    try:
        function(lab)
    finally:
        for room in made:
            room.close()
    assert processes_of(str(folder)) == []
    return lab


def test_every_row_is_proved_on_every_engine_it_names() -> None:
    wanted = {(row.id, engine) for row in ROWS.values() for engine in row.engines}
    assert {row for row, _ in SCENARIOS} <= set(ROWS)
    assert SCENARIOS.keys() | ALSO >= wanted
