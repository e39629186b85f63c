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
    written = "generated_tokens_total"

    def counted() -> bool:
        return normalize(read(), rules).numbers[written][""] >= before[written][""] + made

    until(counted, 5, "what was generated is counted")
    after = normalize(read(), rules)
    assert {*after.numbers, *after.histograms} == {rule.ours for rule in rules}
    for name in ("prompt_tokens_total", "steps_total"):
        assert after.numbers[name][""] > before[name][""], name
    for name, buckets in after.histograms.items():
        assert buckets.upto[-1][1] > 0 or name == "queue_seconds", name
    if "requests_total" in after.numbers:
        assert sum(after.numbers["requests_total"].values()) > sum(
            before["requests_total"].values()
        )
