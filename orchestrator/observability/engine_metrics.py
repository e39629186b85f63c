"""What engines say of themselves, in our vocabulary, with the model, the engine and the replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from engine_launchers.series import VOCABULARY, Series

LABELS = ("model", "engine", "replica")
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Buckets:
    """A histogram: how many values there were up to each bound, ascending, and their sum."""

    upto: tuple[tuple[float, float], ...]
    total: float


@dataclass(frozen=True)
class Figures:
    """One look at one engine: by name without `engineroom_engine_`, numbers by their reason."""

    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    histograms: Mapping[str, Buckets] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What was last seen of one replica."""

    model: str
    engine: str
    replica: str
    figures: Figures

    @property
    def labels(self) -> list[str]:
        """The values of `LABELS`."""
        return [self.model, self.engine, self.replica]


class EngineMetrics(Collector):
    """All engines that `look` tells of; asked at every exposition."""

    def __init__(
        self, registry: CollectorRegistry, look: Callable[[], Sequence[Told]] = tuple
    ) -> None:
        self.look = look
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """The vocabulary."""
        for series in VOCABULARY.values():
            yield _family(series)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        told = self.look()
        for name, series in VOCABULARY.items():
            family = _family(series)
            for each in told:
                _add(family, each, name, series)
            yield family


def _family(series: Series) -> Metric:
    labels = [*LABELS, *(("reason",) if series.reasons else ())]
    if series.kind == "gauge":
        return GaugeMetricFamily(series.name, series.text, labels=labels)
    if series.kind == "counter":
        return CounterMetricFamily(series.name, series.text, labels=labels)
    return HistogramMetricFamily(series.name, series.text, labels=labels)


def _add(family: Metric, told: Told, name: str, series: Series) -> None:
    if isinstance(family, HistogramMetricFamily):
        if (buckets := told.figures.histograms.get(name)) is not None:
            rows = [
                ("+Inf" if bound == inf else str(bound), count) for bound, count in buckets.upto
            ]
            family.add_metric(told.labels, rows, buckets.total)
        return
    numbers = told.figures.numbers.get(name)
    if numbers is None:
        return
    assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)  # noqa: S101 - of `_family`
    if not series.reasons:
        family.add_metric(told.labels, numbers.get("", 0.0))
    for reason in series.reasons:
        family.add_metric([*told.labels, reason], numbers.get(reason, 0.0))
