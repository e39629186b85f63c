"""How fast one stream was decoded: which streams tell it, and what they tell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control import Dealings
from orchestrator.gateway.solo import Run, Solo
from orchestrator.supervision.gateways import solo_rate


def streamed(run: Run, events: int, step: float, read: float = 0.0) -> None:
    """One event every `step` seconds, of which the client takes `read` to read each."""
    at = 5.0
    for _ in range(events):
        run.came(at + read, at + step, 1)
        at += step
    run.came(at, at, 0)  # its finish


@given(events=st.integers(17, 500), step=st.floats(1e-4, 2.0))
def test_a_stream_alone_tells_its_rate(events: int, step: float) -> None:
    solo = Solo()
    run = solo.begin()
    assert run is not None
    streamed(run, events, step)
    solo.end(run)
    solo.add(run, events)
    assert solo.tokens == events - 1
    assert abs(solo.tokens / solo.seconds - 1 / step) < 1e-6 / step


def test_what_tells_nothing_of_the_engine_is_left_out() -> None:
    few, silent, slow_reader, thoughts = Run(), Run(), Run(), Run()
    streamed(few, 16, 0.1)
    assert few.decoded(16) == (0, 0.0)
    assert silent.decoded(None) == (0, 0.0)
    streamed(slow_reader, 100, 0.1, read=0.09)
    assert slow_reader.decoded(100) == (0, 0.0)
    streamed(thoughts, 100, 0.1)
    assert thoughts.decoded(300) == (0, 0.0)
    assert thoughts.decoded(100)[0] == thoughts.decoded(None)[0] == 99


@given(st.lists(st.booleans(), max_size=30))
def test_streams_that_overlap_are_not_alone(orders: list[bool]) -> None:
    """True begins a stream, False ends the oldest."""
    solo, open_ones, crowded = Solo(), list[int](), set[int]()
    seen: list[Run | None] = []
    for begins in orders:
        if begins:
            open_ones.append(len(seen))
            seen.append(solo.begin())
            if len(open_ones) > 1:
                crowded |= set(open_ones)
        elif open_ones:
            solo.end(seen[open_ones.pop(0)])
    alone = [at for at, each in enumerate(seen) if each is not None and each.alone]
    assert alone == [at for at in range(len(seen)) if at not in crowded]


def test_reports_tell_the_rate_of_what_ended_between_them() -> None:
    first = Dealings(generation=1, owed=0, relayed=9, answered=1, solo_tokens=100, solo_s=2.0)
    later = first.model_copy(update={"solo_tokens": 160, "solo_s": 3.0})
    assert solo_rate(None, first) == 50.0
    assert solo_rate(first, later) == 60.0
    assert solo_rate(later, later) is None
