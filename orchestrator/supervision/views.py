"""What people and programs are shown of an instance. A stale read is fine here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_launchers.base import CrashCause
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.lifecycle import State
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
        "in_flight": in_flight,
        "waiting": waiting.get(plan.model.id, 0) if plan else 0,
        "log": str(instance.log) if instance.log else None,
    }


def crash_of(instance: Instance) -> dict[str, CrashCause]:
    """Its name and why its engine crashed, where that is the last that happened to it."""
    now = instance.lifecycle
    after = {State.STARTING, State.BACKOFF, State.FAILED}
    crashed = now.cause is not None and (now.state in after or now.after == "retry")
    return {instance.name: now.cause} if crashed and now.cause else {}
