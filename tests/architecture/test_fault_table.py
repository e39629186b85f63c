"""The published table of faults names every row of the matrix on every engine, and is fresh."""

from __future__ import annotations

from tests.faults.lab import rows
from tools.fault_table import PAGE, measurements, page


def test_the_table_is_fresh() -> None:
    assert PAGE.read_text() == page(), "run: python -m tools.fault_table"


def test_every_row_was_measured_on_every_engine_and_kept_its_bound() -> None:
    known = measurements()
    for row in rows().values():
        for engine in row.engines:
            seconds = known.get((row.id, engine))
            assert seconds, f"{row.id} on {engine} was never measured: make faults"
            assert max(seconds) <= row.bound_s
