"""The cheap series say what prometheus_client's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from orchestrator.observability.plain import PlainCounter, PlainHistogram

BOUNDS = (0.5, 1, 2.5)


def lines(registry: CollectorRegistry) -> list[str]:
    text = generate_latest(registry).decode().splitlines()
    return sorted(line for line in text if "_created" not in line)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 4) | st.sampled_from(BOUNDS))))
def test_the_same_lines(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    count, seen = (
        PlainCounter("x_total", "X.", ["m"], ours),
        PlainHistogram("y", "Y.", ["m"], BOUNDS, ours),
    )
    their_count = Counter("x_total", "X.", ["m"], registry=theirs)
    their_seen = Histogram("y", "Y.", ["m"], buckets=BOUNDS, registry=theirs)
    for label, value in observed:
        count.labels(label).inc()
        seen.labels(label).observe(value)
        their_count.labels(label).inc()
        their_seen.labels(label).observe(value)
    assert lines(ours) == lines(theirs)
