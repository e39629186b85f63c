"""What people and programs are shown of an instance. A stale read is fine here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.supervision.instance import Instance
from orchestrator.supervision.workloads import EngineWorkload


def describe(instance: Instance, in_flight: int, waiting: Mapping[str, int]) -> dict[str, Any]:
    """One row for the admin API and `ps`; times in seconds. `waiting` counts requests by model."""
    now, handle = instance.lifecycle, instance.running
    workload = instance.workload
    plan = workload.plan if isinstance(workload, EngineWorkload) else None
    child = handle.record.child if handle else None
    return {
        "id": instance.name,
        "kind": "engine" if plan else "gateway",
        "model": plan.model.id if plan else None,
        "engine": plan.engine if plan else None,
        "plan": plan.id if plan else None,
        "state": now.state.value,
        "why": now.why,
        "cause": now.cause.value if now.cause else None,
        "generation": now.generation,
        "restarts": instance.restarts,
        "pid": child.pid if child else None,
        "url": instance.base_url,
        "uptime_s": round(instance.uptime_s, 3) if instance.uptime_s is not None else None,
        "loading": _loading(instance),
        "in_flight": in_flight,
        "waiting": waiting.get(plan.model.id, 0) if plan else 0,
        "log": str(instance.log) if instance.log else None,
    }


def _loading(instance: Instance) -> dict[str, Any] | None:
    """How far a start is; phase and percent are None while its log has told none."""
    load = instance.loading
    if load is None:
        return None
    return {
        "phase": load.phase.name if load.phase else None,
        "percent": load.phase.percent if load.phase else None,
        "seconds": round(load.seconds, 1),
        "quiet_s": round(load.silence.quiet_s, 1),
    }
