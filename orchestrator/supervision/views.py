"""What people and programs are shown of instances and models. A stale read is fine here."""

from __future__ import annotations

from typing import Any

from orchestrator.supervision.gateways import GatewayLink
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.ledger import Claim
from orchestrator.supervision.pool import Pool
from orchestrator.supervision.workloads import EngineWorkload


def describe(instance: Instance, link: GatewayLink, claim: Claim | None) -> dict[str, Any]:
    """One row for the admin API and `ps`; times in seconds, memory in bytes by device."""
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
        "rung": plan.rung if plan else None,
        "state": now.state.value,
        "why": now.why,
        "cause": now.cause.value if now.cause else None,
        "generation": now.generation,
        "restarts": instance.restarts,
        "pid": child.pid if child else None,
        "url": instance.base_url,
        "uptime_s": round(instance.uptime_s, 3) if instance.uptime_s is not None else None,
        "memory_planned": dict(claim.planned) if claim else {},
        "memory_measured": dict(claim.measured) if claim else {},
        "loading": _loading(instance),
        "tokens_per_second": round(link.tokens_per_second(instance), 1),
        "in_flight": link.in_flight(instance.name),
        "waiting": link.waiting()[plan.model.id] if plan else 0,
        "log": str(instance.log) if instance.log else None,
    }


def describe_model(pool: Pool, link: GatewayLink) -> dict[str, Any]:
    """One served model; times in seconds."""
    keeping, demand = pool.order.keeping, link.demand(pool.name)
    return {
        "model": pool.name,
        "phase": pool.phase.value,
        "why": pool.why,
        "engines": [each.name for each in pool.instances],
        "replicas": pool.order.replicas,
        "plan": pool.plan.id,
        "pin": keeping.pin,
        "priority": keeping.priority,
        "ttl_s": keeping.ttl_s,
        "group": keeping.group,
        "exclusive": keeping.exclusive,
        "in_flight": demand.in_flight,
        "waiting": demand.waiting,
        "served": demand.served,
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
