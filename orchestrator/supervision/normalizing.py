"""An engine's exposition in our vocabulary, by its launcher's rules. Pure.

What the engine says is another program's word: only what the rules name is looked at, numbers have
to be numbers, and there are no more buckets than fit. A series that is not there, or makes no
sense, is left out; the others stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isfinite

from engine_launchers.series import VOCABULARY, SeriesRule
from orchestrator.observability.engine_metrics import Buckets, Figures, Numbers
from orchestrator.supervision.exposition import rows

_MOST_BUCKETS = 64
_Rows = list[tuple[dict[str, str], float]]


def normalize(text: str, rules: Sequence[SeriesRule]) -> Figures:
    """Our names to what `text` says of them. Several rules for one name are added up."""
    found = rows(text, _names(rules))
    numbers: dict[str, dict[str, float]] = {}
    histograms: dict[str, Buckets] = {}
    for rule in rules:
        if VOCABULARY[rule.ours].kind == "histogram":
            buckets = _buckets(found, rule.theirs)
            if buckets is not None:
                histograms[rule.ours] = buckets
            continue
        for reason, value in _numbers(found, rule).items():
            mine = numbers.setdefault(rule.ours, {})
            mine[reason] = mine.get(reason, 0.0) + value
    return Figures(numbers, histograms)


def _names(rules: Iterable[SeriesRule]) -> set[str]:
    names: set[str] = set()
    for rule in rules:
        if VOCABULARY[rule.ours].kind == "histogram":
            names |= {f"{rule.theirs}_bucket", f"{rule.theirs}_sum"}
        else:
            names |= {rule.theirs, *([rule.over] if rule.over else ())}
    return names


def _numbers(found: dict[str, _Rows], rule: SeriesRule) -> Numbers:
    """By reason, of which there is one, "", where the series has none."""
    told = [(labels, value) for labels, value in found.get(rule.theirs, []) if _sane(value)]
    if not told:
        return {}
    if rule.label is not None:
        sums: dict[str, float] = {}
        for labels, value in told:
            reason = rule.words.get(labels.get(rule.label, ""), "other")
            sums[reason] = sums.get(reason, 0.0) + value
        return sums
    total = sum(value for _, value in told)
    if rule.over is None:
        return {"": total}
    whole = sum(value for _, value in found.get(rule.over, []) if _sane(value))
    return {"": total / whole} if whole else {}


def _buckets(found: dict[str, _Rows], name: str) -> Buckets | None:
    """Summed over all labels but `le`; None for what is no histogram."""
    counts: dict[float, float] = {}
    for labels, value in found.get(f"{name}_bucket", []):
        bound = _bound(labels.get("le", ""))
        if bound is None or not _sane(value):
            return None
        counts[bound] = counts.get(bound, 0.0) + value
    upto = [counts[bound] for bound in sorted(counts)]
    if inf not in counts or len(counts) > _MOST_BUCKETS or upto != sorted(upto):
        return None
    total = sum(value for _, value in found.get(f"{name}_sum", []))
    return Buckets(tuple(sorted(counts.items())), total) if isfinite(total) else None


def _bound(text: str) -> float | None:
    try:
        bound = float(text)
    except ValueError:
        return None
    return bound if bound == bound else None


def _sane(value: float) -> bool:
    return isfinite(value) and value >= 0
