"""Holds a real engine's `/metrics` against its launcher's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine_launchers.series import SeriesRule
from orchestrator.supervision.normalizing import normalize
from tests.harness import until


def assert_told_in_our_words(
    rules: Sequence[SeriesRule], read: Callable[[], str], generate: Callable[[], int]
) -> None:
    """Every rule finds its series, and the tokens that `generate` made are counted."""
    before = normalize(read(), rules).numbers
    made = generate()
    assert made > 1

    def grown(name: str) -> float:
        """Before its first request an engine may have no such series."""
        now = normalize(read(), rules).numbers[name]
        return sum(now.values()) - sum(before.get(name, {}).values())

    until(lambda: grown("generated_tokens_total") >= made, 5, "what was generated is counted")
    assert grown("prompt_tokens_total") > 0
    assert grown("steps_total") > 0
    after = normalize(read(), rules)
    assert {*after.numbers, *after.histograms} == {rule.ours for rule in rules}
    for name, buckets in after.histograms.items():
        assert buckets.upto[-1][1] > 0, name
    if "requests_total" in after.numbers:
        assert grown("requests_total") > 0
