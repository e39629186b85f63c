"""What running engines teach: one learner for each, fed by what the supervisor sees of it."""

from __future__ import annotations

from collections.abc import Mapping

from engine_launchers.machine import HardwareProfile
from orchestrator.planning.experience import key_of
from orchestrator.supervision.calibration import Learner
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.store import Store
from orchestrator.supervision.workloads import EngineWorkload


class Lessons:
    """Owned by the supervisor. A plan is believed once it served for `stable_s` seconds."""

    def __init__(self, store: Store, hardware: HardwareProfile, stable_s: float) -> None:
        self._store, self._hardware, self._stable_s = store, hardware, stable_s
        self._learners: dict[str, Learner] = {}

    def ready(self, instance: Instance, seconds: float) -> None:
        """It answered `seconds` after its launch."""
        workload = instance.workload
        if isinstance(workload, EngineWorkload):
            self._of(instance, workload).ready(workload.plan, seconds)

    def sample(self, instance: Instance, memory: Mapping[str, int]) -> None:
        """It holds so many bytes now, by device."""
        workload = instance.workload
        if not isinstance(workload, EngineWorkload) or not memory:
            return
        learner = self._of(instance, workload)
        learner.sample(workload.plan, memory)
        if (instance.uptime_s or 0.0) >= self._stable_s:
            learner.held(workload.plan)

    def speed(self, instance: Instance, tokens_per_second: float) -> None:
        """It decoded one stream at that rate."""
        workload = instance.workload
        if isinstance(workload, EngineWorkload):
            self._of(instance, workload).speed(workload.plan, tokens_per_second)

    def forget(self, name: str) -> None:
        """The instance is gone."""
        self._learners.pop(name, None)

    def _of(self, instance: Instance, workload: EngineWorkload) -> Learner:
        found = self._learners.get(instance.name)
        if found is None:
            key = key_of(workload.order.plan, self._hardware)
            known = {each.key.name: each for each in self._store.learned()}
            found = Learner(self._store.learn, key, known.get(key.name))
            self._learners[instance.name] = found
        return found
