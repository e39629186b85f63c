"""A pool as the gateways see it."""

from __future__ import annotations

from engine_launchers.base import CrashCause, Launcher
from orchestrator.control import ModelRoute, Replica
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.pool import Pool
from orchestrator.supervision.schedule import Phase
from orchestrator.supervision.workloads import EngineWorkload

_STATES = {Phase.ABSENT: "unloaded", Phase.ASLEEP: "sleeping", Phase.OFF: "stopped"}
_WORTH_WAITING = frozenset({Phase.ABSENT, Phase.ASLEEP, Phase.LOADING, Phase.SERVING})
_BEST_FIRST = (
    lc.State.READY, lc.State.SUSPECT, lc.State.DRAINING, lc.State.STARTING, lc.State.BACKOFF,
    lc.State.SLEEPING, lc.State.STOPPING, lc.State.FAILED, lc.State.STOPPED,
)  # fmt: skip


def route(pool: Pool, launcher: Launcher, now: float) -> ModelRoute:
    """The row of the route table. `launcher` is that of the plan in use, `now` is monotonic."""
    plan, phase = pool.plan, pool.phase
    found = [each.lifecycle for each in pool.instances] or [lc.Lifecycle(lc.State.STARTING)]
    best = min(found, key=lambda each: _BEST_FIRST.index(each.state))
    refused = now < pool.refused_until
    leaving_for_others = phase is Phase.LEAVING and not pool.off
    return ModelRoute(
        name=pool.name,
        state=_STATES.get(phase, best.state.value),
        why=pool.why or best.why,
        expected=(phase in _WORTH_WAITING or leaving_for_others) and not refused,
        engine=plan.engine,
        context=plan.tuning.max_model_len or plan.model.context_max,
        created=pool.created,
        routes=launcher.routes,
        quirks=launcher.quirks,
        served=launcher.served(plan),
        chat_template=plan.model.chat_template,
        bos_token=plan.model.bos_token,
        eos_token=plan.model.eos_token,
        replicas=tuple(one for each in pool.instances if (one := _replica(pool, each))),
        routing=pool.order.routing,
        defaults=dict(pool.order.defaults),
        lost={each.name: cause for each in pool.instances if (cause := _crash(each)) is not None},
    )


def _crash(instance: Instance) -> CrashCause | None:
    """Why its engine crashed, where that is the last that happened to it."""
    now = instance.lifecycle
    after = {lc.State.STARTING, lc.State.BACKOFF, lc.State.FAILED}
    return now.cause if now.state in after or now.after == "retry" else None


def _replica(pool: Pool, instance: Instance) -> Replica | None:
    now, workload = instance.lifecycle, instance.workload
    if not instance.base_url or now.state not in lc.SERVING | {lc.State.DRAINING}:
        return None
    limit = workload.plan.tuning.max_concurrency if isinstance(workload, EngineWorkload) else None
    most = pool.order.max_concurrency
    return Replica(
        id=instance.name,
        generation=now.generation,
        base_url=instance.base_url,
        accepting=now.state in lc.SERVING,
        vouched=now.state is lc.State.READY,
        max_concurrency=min(limit or 1, most or limit or 1),
    )
