"""What the control plane's `/metrics` shows beside what is counted: machine, ledger, engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from engine_launchers.machine import GpuPulse
from orchestrator.observability.control_metrics import ControlMetrics
from orchestrator.observability.machine_metrics import Seen
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.instance import Change, Instance
from orchestrator.supervision.ledger import Ledger, Room
from orchestrator.supervision.loading import LAUNCHING, by_phase
from orchestrator.supervision.workloads import EngineWorkload


def count_change(metrics: ControlMetrics, instance: Instance, change: Change) -> None:
    """Count what a transition says."""
    name, state = instance.name, lc.State
    metrics.moved(name, change.old, change.new, change.lifecycle.stall)
    if change.new is state.STARTING:
        if change.old is not state.SLEEPING:
            metrics.launched(name)
        if change.lifecycle.cause:
            metrics.restarted(name, change.lifecycle.cause)
    if change.new is state.READY and change.old is state.STARTING:
        engine = isinstance(instance.workload, EngineWorkload)
        phases = by_phase(instance.loaded, change.seconds) if engine else {}
        metrics.started(name, change.seconds, phases)


def add_series(metrics: ControlMetrics, instance: Instance) -> None:
    """Create the series of a new engine or gateway; a gateway's start has no phases."""
    workload, phases = instance.workload, dict[str, None]()
    if isinstance(workload, EngineWorkload):
        phases = dict.fromkeys((LAUNCHING, *(rule.name for rule in workload.watch.phases)))
    metrics.add_engine(instance.name, lc.State, lc.TRANSITIONS, tuple(phases))


class Figures:
    """Looks at a supervisor's parts whenever somebody reads `/metrics`."""

    def __init__(
        self,
        instances: Callable[[], Iterable[Instance]],
        ledger: Ledger,
        rooms: Callable[[], Mapping[str, Room]],
        host: Callable[[], Mapping[str, float]],
    ) -> None:
        self._instances, self._ledger, self._rooms, self._host = instances, ledger, rooms, host

    def look(self) -> Seen:
        """Everything as it is now; devices and host as they were last read."""
        rooms = self._rooms()
        return Seen(
            devices=self._devices(rooms),
            gpus={device: _pulse(room.pulse) for device, room in rooms.items() if room.pulse},
            claims={name: self._claim(name) for name in tuple(self._ledger.claims)},
            host=dict(self._host()),
            engines=[
                (each.workload.order.name, each.workload.plan.engine, each.name,
                 each.workload.plan.id)
                for each in self._instances()
                if isinstance(each.workload, EngineWorkload)
            ],
        )  # fmt: skip

    def _devices(self, rooms: Mapping[str, Room]) -> dict[str, dict[str, float]]:
        spare, found = self._ledger.spare(rooms), dict[str, dict[str, float]]()
        for device, room in rooms.items():
            found[device] = {
                "memory_bytes": room.total,
                "memory_free_bytes": room.free,
                "memory_spare_bytes": max(0, spare[device]),
            }
            if device in self._ledger.budget:
                found[device]["memory_budget_bytes"] = self._ledger.budget[device]
        return found

    def _claim(self, name: str) -> dict[str, dict[str, float]]:
        claim = self._ledger.claims[name]
        return {
            device: {
                "planned_bytes": claim.planned.get(device, 0),
                "measured_bytes": claim.measured.get(device, 0),
            }
            for device in claim.held
        }


def _pulse(pulse: GpuPulse) -> dict[str, float]:
    told = {
        "utilization_ratio": pulse.busy,
        "temperature_celsius": pulse.celsius,
        "power_watts": pulse.watts,
    }
    return {name: value for name, value in told.items() if value is not None}
