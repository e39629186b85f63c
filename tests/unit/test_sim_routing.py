"""The simulation of routing: repeatable, sane, and what it says of prefix affinity."""

from __future__ import annotations

import pytest

from bench.routing.__main__ import BEGIN, END, PAGE, POLICIES, SIZES, outcome, table
from bench.routing.replicas import BLOCK, PrefixCache


@pytest.mark.parametrize("name", ["shared prefix", "many turns"])
def test_it_is_repeatable_and_affinity_hits_more_than_least_in_flight(name: str) -> None:
    prefix, again, least = (
        outcome(name, routing, size=8, seed=3, requests=1500)
        for routing in ("prefix", "prefix", "least")
    )
    assert prefix == again
    assert prefix != outcome(name, "prefix", size=8, seed=4, requests=1500)
    assert prefix.requests == least.requests == 1000
    assert prefix.hit_rate > least.hit_rate + 0.1
    assert prefix.ttft_p50 < least.ttft_p50
    assert prefix.imbalance < 1.6
    assert 0 < prefix.ttft_p50 < prefix.ttft_p99 < 60


def test_a_cache_holds_prefixes_and_forgets_the_oldest() -> None:
    cache = PrefixCache(4 * BLOCK)
    assert cache.take((1, 2, 3)) == 0
    assert cache.take((1, 2, 5)) == 2
    assert cache.take((1, 2, 3, 4)) == 3
    cache.take((7, 8, 9))
    assert cache.take((1, 2, 3, 4)) == 1  # the start of a prompt is kept longest


def test_the_page_has_the_table_of_every_size_and_policy() -> None:
    made = PAGE.read_text().split(BEGIN)[1].split(END)[0].splitlines()
    assert len(made) == 2 + 2 * len(SIZES) * len(POLICIES)
    shown = [line for line in made if line.startswith("| many turns | 2 |")]
    assert shown == [line for line in table([2], 1) if line.startswith("| many turns | 2 |")]
