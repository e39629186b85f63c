"""Counters and histograms of one thread, as cheap as a list: for what every request counts.

prometheus_client's own take a lock for each number, which together cost a request more than its
checks. These are read by the same registry and look the same from outside.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


def own_registry() -> CollectorRegistry:
    """A registry for series that have no others beside them to tell when they began."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    return CollectorRegistry()


class Count:
    """One number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Count `by` more."""
        self.value += by


class Buckets:
    """How many values there were up to each bound, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class PlainCounter(Collector):
    """A counter with labels; `name` ends in _total."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self.label_names = name, text, tuple(labels)
        self._children: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The number of these label values."""
        return self._children.setdefault(values, Count())

    def remove(self, *values: str) -> None:
        """Forget the number of these label values; without effect where there is none."""
        self._children.pop(values, None)

    def describe(self) -> Iterator[Metric]:
        """Its name, before there is anything to collect."""
        yield CounterMetricFamily(self._name, self._text, labels=self.label_names)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._text, labels=self.label_names)
        for values, count in self._children.items():
            family.add_metric(values, count.value)
        yield family


class PlainHistogram(Collector):
    """A histogram with labels; `buckets` are upper bounds, ascending."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._text, self.label_names = name, text, tuple(labels)
        self._bounds = tuple(float(each) for each in buckets)
        self._children: dict[tuple[str, ...], Buckets] = {}
        registry.register(self)

    def labels(self, *values: str) -> Buckets:
        """The buckets of these label values."""
        return self._children.setdefault(values, Buckets(self._bounds))

    def describe(self) -> Iterator[Metric]:
        """Its name, before there is anything to collect."""
        yield HistogramMetricFamily(self._name, self._text, labels=self.label_names)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._text, labels=self.label_names)
        names = [*(str(each) for each in self._bounds), "+Inf"]
        for values, child in self._children.items():
            upto, rows = 0, []
            for bound, count in zip(names, child.counts, strict=True):
                upto += count
                rows.append((bound, upto))
            family.add_metric(values, rows, child.total)
        yield family
