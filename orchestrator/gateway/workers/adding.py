"""The metrics of several workers as those of one gateway. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_Key = tuple[str, tuple[tuple[str, str], ...]]


class _Shown(Collector):
    """Families that are there already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def added(texts: Sequence[str], alike: Collection[str]) -> str:
    """One exposition of several: numbers are added, but for those that all see alike.

    Of the latter, named by `alike`, the largest counts, and of times of creation the first.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[_Key, float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, family)
            known = values.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                known[key] = _together(family.name, known.get(key), sample.value, alike)
    made = []
    for name, first in families.items():
        shown = Metric(name, first.documentation, first.type)
        for (series, labels), value in values[name].items():
            shown.add_sample(series, dict(labels), value)
        made.append(shown)
    return generate_latest(_Shown(made)).decode()


def without_gauges(text: str) -> str:
    """What counts on when a worker is gone: what it had done, not what it had under way."""
    kept = [each for each in text_string_to_metric_families(text) if each.type != "gauge"]
    return generate_latest(_Shown(kept)).decode()


def _together(name: str, known: float | None, value: float, alike: Collection[str]) -> float:
    if known is None:
        return value
    return max(known, value) if name in alike else known + value
