"""Who hangs and who starves are told apart by the kernel's own count."""

from __future__ import annotations

import os

import pytest

from orchestrator.supervision.starving import Turns, starved, turns


@pytest.mark.parametrize(
    ("ran", "waited", "waits", "expected"),
    [
        (0.01, 4.9, False, True),
        (0.5, 4.5, False, True),
        (0.0, 0.0, True, True),  # its turn did not come at all
        (0.0, 0.0, False, False),  # it waits for something else
        (5.0, 0.0, True, False),  # it computes
        (2.5, 2.5, True, False),  # it computes, and has to share
        (0.01, 1.0, False, False),  # it had to wait now and then
    ],
)
def test_next_to_nothing_of_what_it_wanted_is_starving(
    ran: float, waited: float, waits: bool, expected: bool
) -> None:
    after = Turns(100.0 + ran, 50.0 + waited, waits)
    assert starved(Turns(100.0, 50.0, False), after, 5.0) is expected


def test_what_cannot_be_seen_is_not_excused() -> None:
    assert turns(None) is None
    assert not starved(None, Turns(0, 5, True), 5.0)
    mine = turns(os.getpid())
    assert mine is not None
    assert mine.ran_s > 0
