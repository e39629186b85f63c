"""Do tokens arrive as they are made? A verdict from when a few answers' events arrived. Pure.

A stream that something holds back looks like a slow first token with everything behind it at once,
which a long prefill with fast decoding resembles. An answer of one token tells them apart::

    made    = end to end of N tokens - end to end of 1 token    the time in which tokens were made
    spread  = last event - first event                          the time over which they arrived

Streamed: spread is most of made, and events arrive one or a few at a time. All at once: spread is a
small part of made. In lumps: arrivals (events that lie within 2 ms are one) carry many events each,
with long pauses between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

Verdict = Literal["streamed", "lumps", "one lump", "too short"]

_SAME_S = 0.002
_SPREAD_SHARE = 0.5
_LUMP = 4.0  # events per arrival
_LONG_S = 0.020  # between arrivals
_LEAST_EVENTS = 8
_LEAST_S = 0.020


@dataclass(frozen=True)
class Watched:
    """One answer: end to end and the arrivals of its events, seconds since it was asked."""

    events: tuple[float, ...]
    ended: float


@dataclass(frozen=True)
class Finding:
    """The verdict with its figures; seconds."""

    verdict: Verdict
    events: int
    arrivals: int
    made: float
    spread: float
    gap_p50: float
    gap_max: float
    ttft: float

    @property
    def good(self) -> bool:
        """Whether tokens arrive as they are made."""
        return self.verdict == "streamed"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "verdict": self.verdict.replace(" ", "_"), "streamed": self.good,
            "events": self.events, "arrivals": self.arrivals, "made_s": self.made,
            "spread_s": self.spread, "gap_p50_s": self.gap_p50, "gap_max_s": self.gap_max,
            "ttft_s": self.ttft,
        }  # fmt: skip


def clusters(events: Sequence[float], same: float = _SAME_S) -> list[list[float]]:
    """Sorted moments in groups; a group's members follow each other within `same` seconds."""
    groups: list[list[float]] = []
    for at in events:
        if groups and at - groups[-1][-1] <= same:
            groups[-1].append(at)
        else:
            groups.append([at])
    return groups


def judge_one(answer: Watched, one_token: float) -> Finding:
    """The finding on one answer; `one_token` is the end to end time of one token, seconds."""
    events = answer.events
    groups = clusters(events)
    made = max(0.0, answer.ended - one_token)
    spread = events[-1] - events[0] if events else 0.0
    gaps = [b - a for a, b in pairwise(events)] or [0.0]
    pauses = [b[0] - a[-1] for a, b in pairwise(groups)] or [0.0]
    verdict: Verdict = "streamed"
    if len(events) < _LEAST_EVENTS or max(made, spread) < _LEAST_S:
        verdict = "too short"
    elif spread < _SPREAD_SHARE * made:
        verdict = "one lump"
    elif len(events) / len(groups) > _LUMP and median(pauses) > _LONG_S:
        verdict = "lumps"
    return Finding(
        verdict, len(events), len(groups), made, spread, median(gaps), max(gaps),
        events[0] if events else 0.0,
    )  # fmt: skip


def judge(answers: Sequence[Watched], one_token: Sequence[float]) -> Finding:
    """The finding that most of some answers share; of those that tie the worse one.

    `one_token` has the times of one-token answers; the quickest counts, the others had to wait.
    """
    findings = [judge_one(answer, min(one_token)) for answer in answers]
    votes = [finding.verdict for finding in findings]
    worst_first: tuple[Verdict, ...] = ("one lump", "lumps", "too short", "streamed")
    chosen = max(worst_first, key=lambda name: (votes.count(name), -worst_first.index(name)))
    same = [finding for finding in findings if finding.verdict == chosen]
    return sorted(same, key=lambda finding: finding.spread)[len(same) // 2]


def sentence(finding: Finding) -> str:
    """The verdict in words."""
    ms = f"{finding.events} events over {finding.spread * 1e3:.0f} ms"
    if finding.verdict == "streamed":
        return f"tokens arrive as they are made: {ms}, one every {finding.gap_p50 * 1e3:.1f} ms"
    if finding.verdict == "one lump":
        return (
            f"tokens do not arrive as they are made: {ms}, although making them took "
            f"{finding.made * 1e3:.0f} ms; something between here and the engine holds them back "
            "(a proxy that buffers or compresses?)"
        )
    if finding.verdict == "lumps":
        return (
            f"tokens arrive in lumps: {ms}, in {finding.arrivals} arrivals of about "
            f"{finding.events / finding.arrivals:.0f}; something gathers them before it sends"
        )
    return f"too short to tell ({ms}): ask for more with --tokens"
