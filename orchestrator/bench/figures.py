"""The figures of a run, by the definitions that the field uses. Pure.

::

    TTFT           first event with text - request sent                       per request
    ITL            event with text - event with text before it                per gap
    TPOT           (last - first event with text) / (output tokens - 1)       per request
    end to end     last byte of the answer - request sent                     per request
    window         last end - first start                                     per run
    output rate    output tokens of whole answers / window                    tokens/s
    request rate   whole answers / window                                     1/s
    goodput        whole answers within every objective / window              1/s
    in flight      sum of end to end of all requests / window (Little)        requests

Objectives on `ttft`, `tpot` and `e2e` hold the request's figure; one on `itl` holds each of its
gaps. A request that has no such figure (one token has no gap) is within it; one without any event
is not within `ttft`. Percentiles are linear between neighbours. Tokens are the server's count
(`usage`) where it sends one, else events with text. Failed and rejected requests count in no
latency.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.bench.histogram import Spread, spread
from orchestrator.bench.records import REJECTED, Record

LATENCIES = ("ttft", "itl", "tpot", "e2e")


@dataclass(frozen=True)
class Figures:
    """All figures of one run; a spread is None where nothing was measured."""

    sent: int
    ok: int
    rejected: Mapping[int, int]
    errors: Mapping[str, int]
    window: float
    output_tokens: int
    prompt_tokens: int | None
    counted_by: str  # "usage", "events", "mixed", or "none" where nothing came whole
    request_rate: float
    output_rate: float
    in_flight: float
    late: float  # an open loop's largest delay of a send, seconds
    spreads: Mapping[str, Spread | None]
    slo: Mapping[str, float]
    within: int

    @property
    def failed(self) -> int:
        """Requests that failed and were not rejected."""
        return sum(self.errors.values())

    @property
    def goodput(self) -> float:
        """Whole answers within every objective, per second."""
        return self.within / self.window if self.window > 0 else 0.0

    def value(self, name: str) -> float | None:
        """One figure by its name: `output_rate`, `request_rate`, `goodput`, `ttft.p50`, ..."""
        if "." not in name:
            return float(getattr(self, name))
        which, point = name.split(".")
        found = self.spreads[which]
        return None if found is None else float(getattr(found, point))

    def to_json(self) -> dict[str, Any]:
        """For the JSON report: seconds, tokens, requests."""
        goodput: dict[str, Any] | None = None
        if self.slo:
            share = self.within / self.sent if self.sent else 0.0
            goodput = {"slo": dict(self.slo), "within": self.within, "share": share}
            goodput["requests_per_s"] = self.goodput
        return {
            "requests": {
                "sent": self.sent, "ok": self.ok, "failed": self.failed,
                "rejected": {str(status): count for status, count in self.rejected.items()},
                "errors": dict(self.errors),
            },
            "window_s": self.window,
            "output_tokens": self.output_tokens,
            "prompt_tokens": self.prompt_tokens,
            "tokens_counted_by": self.counted_by,
            "requests_per_s": self.request_rate,
            "output_tokens_per_s": self.output_rate,
            "in_flight_mean": self.in_flight,
            "send_delay_max_s": self.late,
            **{f"{name}_s": each.to_json() if each else None
               for name, each in self.spreads.items()},
            "goodput": goodput,
        }  # fmt: skip


def figures(records: Sequence[Record], slo: Mapping[str, float] | None = None) -> Figures:
    """The figures of one run's requests."""
    slo = slo or {}
    whole = [record for record in records if record.ok]
    first = min((record.began for record in records), default=0.0)
    window = max((record.began + record.ended for record in records), default=0.0) - first
    tokens = sum(record.output_tokens for record in whole)
    counted = sum(record.tokens is not None for record in whole)
    source = "none" if not whole else "mixed" if 0 < counted < len(whole) else "usage"
    prompts = [each.prompt_tokens for each in whole if each.prompt_tokens is not None]
    spreads = {
        "ttft": spread([each.ttft for each in whole if each.ttft is not None]),
        "itl": spread([gap for each in whole for gap in each.gaps]),
        "tpot": spread([each.tpot for each in whole if each.tpot is not None]),
        "e2e": spread([each.ended for each in whole]),
    }
    bad = [record for record in records if not record.ok]
    return Figures(
        sent=len(records),
        ok=len(whole),
        rejected={code: sum(each.status == code for each in bad) for code in REJECTED},
        errors=Counter(each.problem for each in bad if each.status not in REJECTED),
        window=window,
        output_tokens=tokens,
        prompt_tokens=sum(prompts) if prompts and len(prompts) == len(whole) else None,
        counted_by="events" if whole and not counted else source,
        request_rate=len(whole) / window if window > 0 else 0.0,
        output_rate=tokens / window if window > 0 else 0.0,
        in_flight=sum(each.ended for each in records) / window if window > 0 else 0.0,
        late=max((each.late for each in records), default=0.0),
        spreads=spreads,
        slo=slo,
        within=sum(is_within(record, slo) for record in whole),
    )


def is_within(record: Record, slo: Mapping[str, float]) -> bool:
    """Whether a whole answer kept every objective."""
    measured: dict[str, float | None] = {
        "ttft": record.ttft if record.events else float("inf"),
        "itl": max(record.gaps, default=None),
        "tpot": record.tpot,
        "e2e": record.ended,
    }
    found = {name: measured[name] for name in slo}
    return all(value is None or value <= slo[name] for name, value in found.items())


def timeline(records: Sequence[Record], steps: int = 60) -> tuple[float, list[float], list[float]]:
    """(width of a step in seconds, tokens/s in each step, requests in flight in each, mean).

    Tokens are counted by events, each at its arrival; an answer without events counts at its end.
    """
    first = min((record.began for record in records), default=0.0)
    window = max((record.began + record.ended for record in records), default=0.0) - first
    if window <= 0:
        return 0.0, [], []
    width = window / steps
    tokens, busy = [0.0] * steps, [0.0] * steps
    for record in records:
        start = record.began - first
        if record.ok:
            arrivals = record.events or (record.ended,)
            weight = record.output_tokens / len(arrivals)
            for at in arrivals:
                tokens[min(steps - 1, int((start + at) / width))] += weight / width
        end = start + record.ended
        for step in range(int(start / width), min(steps, int(end / width) + 1)):
            begins = step * width
            overlap = min(end, begins + width) - max(start, begins)
            busy[step] += max(0.0, overlap) / width
    return width, tokens, busy
