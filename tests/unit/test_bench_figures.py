"""The bench's figures: percentiles and histograms against sorted data, rates against arithmetic."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.compare import ratios
from orchestrator.bench.figures import figures, is_within, timeline
from orchestrator.bench.histogram import histogram, percentile, spread
from orchestrator.bench.records import Record, join, pack, unpack

seconds = st.floats(0, 1e4, allow_subnormal=False)
values = st.lists(seconds, min_size=1, max_size=300)
gaps = st.lists(st.integers(0, 10**6), max_size=20)


@st.composite
def record(draw: st.DrawFn, whole: bool | None = None) -> Record:
    """A request of whole microseconds, as a worker hands it over."""
    at, events = 0, []
    for gap in draw(gaps):
        at += gap
        events.append(at / 1e6)
    ok = draw(st.booleans()) if whole is None else whole
    status = 200 if ok else draw(st.sampled_from([0, 200, 429, 500, 503]))
    tokens = draw(st.none() | st.integers(0, 100))
    return Record(
        draw(st.integers(0, 10**9)) / 1e6, tuple(events),
        (at + draw(st.integers(1, 10**6))) / 1e6, status, "" if ok else f"HTTP {status}",
        tokens, draw(st.none() | st.integers(0, 100)),
    )  # fmt: skip


@given(st.lists(seconds, min_size=2, max_size=200), st.integers(1, 99))
def test_a_percentile_is_the_librarys(data: list[float], percent: int) -> None:
    known = statistics.quantiles(data, n=100, method="inclusive")[percent - 1]
    assert percentile(sorted(data), percent / 100) == pytest.approx(known, rel=1e-9, abs=1e-12)


@given(values)
def test_percentiles_lie_among_the_values_and_grow(data: list[float]) -> None:
    found = spread(data)
    assert found is not None
    points = [found.low, found.p50, found.p90, found.p95, found.p99, found.high]
    assert points == sorted(points)
    assert (points[0], points[-1], found.count) == (min(data), max(data), len(data))
    assert found.p50 == pytest.approx(statistics.median(data))
    assert found.mean == pytest.approx(statistics.fmean(data))


def test_no_values_have_no_percentile() -> None:
    assert spread([]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(values)
def test_a_bin_holds_what_lies_between_its_edges(data: list[float]) -> None:
    found = histogram(sorted(data))
    assert sum(found.counts) == len(data)
    assert (found.edges[0], found.edges[-1]) == (min(data), max(data))
    assert len(found.edges) == len(found.counts) + 1
    last = len(found.counts) - 1
    for index, ((low, high), count) in enumerate(
        zip(pairwise(found.edges), found.counts, strict=True)
    ):
        assert low < high or last == 0
        inside = [x for x in data if low <= x < high or (index == last and x == high)]
        assert len(inside) == count


def test_bins_grow_where_values_span_far() -> None:
    near, far = histogram([1.0, 2.0, 3.0]), histogram([0.001, 0.01, 5.0])
    assert near.edges[1] - near.edges[0] == pytest.approx(near.edges[-1] - near.edges[-2])
    assert far.edges[1] / far.edges[0] == pytest.approx(far.edges[-1] / far.edges[-2])


@given(record())
def test_records_survive_the_pipe(made: Record) -> None:
    assert unpack(pack(made)) == made


def test_each_figure_by_its_definition() -> None:
    slow = Record(0.0, (0.5, 0.6, 0.8), 0.9, tokens=5, prompt_tokens=7)
    quick = Record(1.0, (0.1, 0.2), 0.3, tokens=2, prompt_tokens=3)
    refused = Record(1.2, (), 0.01, 429, "HTTP 429")
    away = Record(1.3, (0.1,), 0.7, 0, "connection lost")
    found = figures([slow, quick, refused, away], {"ttft": 0.3})
    assert found.window == pytest.approx(2.0)
    assert found.output_rate == pytest.approx((5 + 2) / 2.0)
    assert found.request_rate == pytest.approx(2 / 2.0)
    assert (found.sent, found.ok, found.failed) == (4, 2, 1)
    assert found.rejected == {429: 1, 503: 0}
    assert found.errors == {"connection lost": 1}
    assert found.value("ttft.p50") == pytest.approx(0.3)
    assert found.value("e2e.p50") == pytest.approx(0.6)
    assert slow.tpot == pytest.approx(0.3 / 4)
    assert slow.gaps == pytest.approx([0.1, 0.2])
    itl = found.spreads["itl"]
    assert itl is not None
    assert itl.count == 3
    assert itl.mean == pytest.approx(0.4 / 3)
    assert found.within == 1
    assert found.goodput == pytest.approx(0.5)
    assert (found.counted_by, found.prompt_tokens) == ("usage", 10)
    assert found.in_flight == pytest.approx((0.9 + 0.3 + 0.01 + 0.7) / 2.0)


def test_without_counts_events_are_counted_and_it_is_said() -> None:
    told, untold = Record(0, (0.1, 0.2), 0.3, tokens=9), Record(0, (0.1, 0.2), 0.3)
    assert figures([untold]).counted_by == "events"
    assert figures([untold]).output_tokens == 2
    assert figures([told, untold]).counted_by == "mixed"
    assert figures([told, untold]).output_tokens == 11
    assert figures([]).counted_by == "none"


def test_objectives() -> None:
    made = Record(0, (0.1, 0.2, 0.5), 0.6, tokens=3)
    assert is_within(made, {"ttft": 0.1, "tpot": 0.2, "e2e": 0.6})
    assert not is_within(made, {"itl": 0.29})
    assert is_within(Record(0, (0.1,), 0.2), {"itl": 0.001, "tpot": 0.001})
    assert not is_within(Record(0, (), 0.2), {"ttft": 1.0})


@given(st.lists(record(), min_size=1, max_size=30))
def test_nothing_is_counted_twice_or_lost(made: list[Record]) -> None:
    found = figures(made, {"e2e": 1.0})
    assert found.ok + found.failed + sum(found.rejected.values()) == found.sent == len(made)
    assert 0 <= found.within <= found.ok
    assert found.output_rate * found.window == pytest.approx(found.output_tokens)


@given(st.lists(record(whole=True), min_size=1, max_size=30))
def test_the_timeline_holds_every_token_and_every_second(made: list[Record]) -> None:
    width, tokens, busy = timeline(made)
    assert sum(tokens) * width == pytest.approx(sum(each.output_tokens for each in made))
    assert sum(busy) * width == pytest.approx(sum(each.ended for each in made), rel=1e-6)


@given(st.lists(st.lists(record(), max_size=8), max_size=5))
def test_rounds_in_a_row_take_their_time_together(rounds: list[list[Record]]) -> None:
    whole, parts = figures(join(rounds)), [figures(each) for each in rounds]
    assert whole.window == pytest.approx(sum(part.window for part in parts), abs=1e-6)
    assert whole.sent == sum(part.sent for part in parts)
    assert whole.output_tokens == sum(part.output_tokens for part in parts)


def test_ratios_are_of_rounds_and_their_median() -> None:
    def run(pace: float) -> list[Record]:
        return [Record(0, (pace, 2 * pace), 2 * pace, tokens=2)]

    first = [figures(run(pace)) for pace in (1.0, 1.0, 1.0)]
    second = [figures(run(pace)) for pace in (2.0, 8.0, 1.0)]
    found = {each.name: each for each in ratios(first, second)}
    assert found["ttft.p50"].rounds == (2.0, 8.0, 1.0)
    assert found["ttft.p50"].ratio == 2.0
    assert found["output_rate"].ratio == pytest.approx(0.5)
    assert [each.name for each in ratios(first, [figures([])] * 3)] == [
        "output_rate",
        "request_rate",
    ]
