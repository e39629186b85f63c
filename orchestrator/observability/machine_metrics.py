"""Series of the machine and of the memory ledger, read when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_DEVICE = {
    "memory_bytes": "Memory of the device; `ram` is the machine's, or what its container may take.",
    "memory_free_bytes": "Memory that nobody holds.",
    "memory_spare_bytes": "Memory that a new engine may count on: free, less what is promised.",
    "memory_budget_bytes": "What all engines together may take of it; only where there is a limit.",
}
_GPU = {
    "utilization_ratio": "Share of time in which it computed, 0 to 1; where the driver tells.",
    "temperature_celsius": "Its temperature; where the driver tells.",
    "power_watts": "What it draws; where the driver tells.",
}
_CLAIM = {
    "planned_bytes": "Memory that a replica was promised.",
    "measured_bytes": "Memory that a replica was last seen to hold.",
}
_HOST = {
    "cpu_ratio": "Share of all processors that was busy in the last five seconds, 0 to 1.",
    "load1": "The system's load average of one minute.",
    "swap_used_bytes": "Swap that is taken.",
    "disk_free_bytes": "Room on the disk of the data directory.",
}
_INFO = ("model", "engine", "replica", "plan")


@dataclass(frozen=True)
class Seen:
    """One look. `devices`, `gpus` and `claims` are by device (claims first by replica), with the
    names above; what is missing is not known. `engines` has the values of the info's labels."""

    devices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gpus: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    claims: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    host: Mapping[str, float] = field(default_factory=dict)
    engines: Sequence[tuple[str, str, str, str]] = ()


class MachineMetrics(Collector):
    """Whatever `look` tells at every exposition."""

    def __init__(self, registry: CollectorRegistry, look: Callable[[], Seen] = Seen) -> None:
        self.look = look
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """All families, empty."""
        yield from _families(Seen())

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield from _families(self.look())


def _families(seen: Seen) -> Iterator[Metric]:
    info = GaugeMetricFamily("engineroom_engine_info", "1; what each replica runs.", labels=_INFO)
    for values in seen.engines:
        info.add_metric(values, 1)
    yield info
    yield from _by_device("engineroom_device", _DEVICE, seen.devices)
    yield from _by_device("engineroom_gpu", _GPU, seen.gpus)
    for name, text in _CLAIM.items():
        labels = ["replica", "device"]
        family = GaugeMetricFamily(f"engineroom_ledger_{name}", text, labels=labels)
        for replica, devices in seen.claims.items():
            for device, figures in devices.items():
                if name in figures:
                    family.add_metric([replica, device], figures[name])
        yield family
    for name, text in _HOST.items():
        single = GaugeMetricFamily(f"engineroom_host_{name}", text, labels=())
        if name in seen.host:
            single.add_metric([], seen.host[name])
        yield single


def _by_device(
    prefix: str, names: Mapping[str, str], seen: Mapping[str, Mapping[str, float]]
) -> Iterator[Metric]:
    for name, text in names.items():
        family = GaugeMetricFamily(f"{prefix}_{name}", text, labels=["device"])
        for device, figures in seen.items():
            if name in figures:
                family.add_metric([device], figures[name])
        yield family
