"""The control plane: owns every instance, tells the gateways, answers the admin API.

Start-up order: adopt what is alive → listen for gateways → launch what is missing.
The first route table is sent when every adopted engine stands in it again, so a gateway that served
on alone never sees its models vanish.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from engine_launchers.base import EngineName, EnginePlan, Launcher
from engine_launchers.machine import HardwareProfile
from orchestrator.control import Failed, ModelRoute, Replica, RouteTable
from orchestrator.errors import Draining, LaunchFailed, NotFound, UnknownModel
from orchestrator.observability.metrics import ControlMetrics
from orchestrator.runtimes.base import HandleRecord, Runtime
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.gateways import GatewayLink
from orchestrator.supervision.instance import Change, Hooks, Instance, ProbeTimes
from orchestrator.supervision.store import Saved, Store
from orchestrator.supervision.views import crash_of, describe
from orchestrator.supervision.workload import Workload
from orchestrator.supervision.workloads import EngineWorkload, GatewayWorkload

_log = logging.getLogger("engineroom.supervisor")
S = lc.State
_AT_REST = frozenset({S.STOPPED, S.FAILED})


@dataclass(frozen=True)
class Orders:
    """What a supervisor shall keep running, and where it keeps its things."""

    plans: tuple[EnginePlan, ...]
    fingerprints: Mapping[str, str]
    hardware: HardwareProfile
    programs: Mapping[EngineName, str]
    launchers: Mapping[EngineName, Launcher]
    policy: lc.Policy
    probes: ProbeTimes
    drain_s: float
    control_socket: Path


def _still_wanted(workload: Workload, saved: Saved) -> bool:
    """Whether a running process is what we would start: same wish, same command line."""
    listen = saved.record.spec.listen
    same_wish = saved.fingerprint == workload.fingerprint
    return same_wish and listen is not None and workload.command(listen) == saved.record.spec


def _report_death(owner: asyncio.Task[None]) -> None:
    if not owner.cancelled() and (error := owner.exception()) is not None:
        _log.critical("%s died; restart engineroom", owner.get_name(), exc_info=error)


@dataclass
class _Model:
    """One served model."""

    instance: Instance
    workload: EngineWorkload
    created: int = field(default_factory=lambda: int(time.time()))


class Supervisor:
    """One per data directory."""

    def __init__(
        self,
        orders: Orders,
        store: Store,
        runtimes: Mapping[str, Runtime],
        gateway: GatewayWorkload,
        client: httpx.AsyncClient,
    ) -> None:
        self.orders, self.store, self.metrics = orders, store, ControlMetrics()
        self._runtimes, self._client = runtimes, client
        self._link = GatewayLink(orders.control_socket, self._on_failed, self._on_gateway)
        self._version = 0
        self._draining = False
        self.shutdown_drain_s: float | None = None
        self.ended = False
        self._publishing = False
        self._owners: dict[str, asyncio.Task[None]] = {}
        self._hooks = Hooks(self._admit, self._on_change, self._save, self._forget)
        self._models: dict[str, _Model] = {}
        self._started = time.time()
        process = runtimes["process"]
        self._gateway = Instance(gateway, process, orders.policy, orders.probes, self._hooks)

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt, listen, launch. Returns when everything is under way, not when it is ready.

        Raises LaunchFailed where this machine cannot run processes as we need it.
        """
        for runtime in self._runtimes.values():
            available = await runtime.check()
            if not available.usable:
                raise LaunchFailed(f"engines cannot be started here: {available.why}")
        saved = {row.name: row for row in self.store.saved()}
        for plan in self.orders.plans:
            self._models[plan.model.id] = self._model(plan, saved.get(f"{plan.model.id}-0"))
        instances = {m.instance.name: m.instance for m in self._models.values()}
        instances[self._gateway.name] = self._gateway
        for name, instance in instances.items():
            self.metrics.add_engine(name, [state.value for state in S])
            owner = asyncio.create_task(instance.run(), name=f"owner {name}")
            owner.add_done_callback(_report_death)
            self._owners[name] = owner
        adopted = await self._adopt(saved, instances)
        await self._link.start()
        for name, instance in instances.items():
            if name not in adopted:
                instance.post(lc.Start("wanted at start"))
        self._publishing = True
        self._publish()

    def _model(self, plan: EnginePlan, saved: Saved | None) -> _Model:
        launcher = self.orders.launchers[plan.engine]
        name = f"{plan.model.id}-0"
        program = self.orders.programs[plan.engine]
        wish = self.orders.fingerprints[plan.model.id]
        workload = EngineWorkload(name, plan, launcher, program, self._client, wish)
        if saved and saved.plan:  # the plan that runs, relaxed or not, where it still fits the wish
            running = EngineWorkload(name, saved.plan, launcher, program, self._client, wish)
            workload = running if _still_wanted(running, saved) else workload
        generation = saved.record.generation if saved else 0
        instance = Instance(
            workload,
            self._runtimes[plan.runtime],
            self.orders.policy,
            self.orders.probes,
            self._hooks,
            generation=generation,
        )
        return _Model(instance, workload)

    async def _adopt(
        self, saved: Mapping[str, Saved], instances: Mapping[str, Instance]
    ) -> set[str]:
        adopted: set[str] = set()
        for name, row in saved.items():
            instance = instances.get(name)
            wanted = instance is not None and _still_wanted(instance.workload, row)
            if instance is not None and wanted and await instance.adopt(row.record):
                adopted.add(name)
                self.store.add_event("engine.adopted", name, generation=row.record.generation)
                await instance.wait_for(lc.SERVING | {S.BACKOFF, S.STARTING, S.FAILED})
                continue
            runtime = self._runtimes[row.record.runtime]
            if not wanted and (stale := await runtime.recover(row.record)) is not None:
                _log.info("engine=%s is not wanted any more and is stopped", name)
                self.store.add_event("engine.unwanted", name)
                await stale.stop(self.orders.policy.stop_grace_s)
            self.store.forget(name)
        return adopted

    async def stop(self) -> None:
        """Drain and end everything: no new work, engines after their last request, gateway last."""
        self._draining = True
        self.store.add_event("shutdown", "supervisor")
        self._publish()
        engines = [model.instance for model in self._models.values()]
        for instance in engines:
            drain = self.orders.drain_s if self.shutdown_drain_s is None else self.shutdown_drain_s
            instance.post(lc.Stop(drain, "stay", "shutdown"))
        await asyncio.gather(*(instance.wait_for(_AT_REST) for instance in engines))
        self._gateway.post(lc.Stop(0, "stay", "shutdown"))
        await self._gateway.wait_for(_AT_REST)
        self.ended = True
        await self.close()

    def hurry(self) -> None:
        """Cut a shutdown short."""
        for model in self._models.values():
            model.instance.post(lc.Stop(0, "stay", "second signal"))

    async def close(self) -> None:
        """Let go of everything; what still runs goes on without us."""
        for owner in self._owners.values():
            owner.cancel()
        await asyncio.gather(*self._owners.values(), return_exceptions=True)
        await self._link.close()

    async def ready(self) -> tuple[S, ...]:
        """Wait until all are READY or FAILED; the engines' states, then the gateway's."""
        settled = frozenset({S.READY, S.FAILED})
        states = [model.instance.wait_for(settled) for model in self._models.values()]
        return tuple(await asyncio.gather(*states, self._gateway.wait_for(settled)))

    # --- what instances and gateways report -----------------------------------------------------

    def _on_change(self, instance: Instance, change: Change) -> None:
        name = instance.name
        self.metrics.moved(name, change.old, change.new)
        self.store.add_event(
            "engine.state",
            name,
            old=change.old,
            new=change.new,
            why=change.why,
            generation=change.lifecycle.generation,
        )
        if change.new is S.READY and change.old is S.STARTING:
            self.metrics.started(name, change.seconds)
        if change.new is S.STARTING and change.lifecycle.cause:
            instance.restarts += 1
            self.metrics.restarted(name, change.lifecycle.cause)
        workload = instance.workload
        if isinstance(workload, EngineWorkload):
            self.metrics.relaxed(name, workload.plan.rung)
        self._publish()
        self._check_idle()

    async def _admit(self, instance: Instance) -> None:
        """Room for everybody."""

    def _save(self, instance: Instance, record: HandleRecord) -> None:
        workload = instance.workload
        plan = workload.plan if isinstance(workload, EngineWorkload) else None
        self.store.save(workload.fingerprint, record, plan)

    def _forget(self, instance: Instance) -> None:
        self.store.forget(instance.name)

    def _on_gateway(self) -> None:
        self.metrics.gateways.set(self._link.connected)
        self._check_idle()

    def _on_failed(self, failed: Failed) -> None:
        for model in self._models.values():
            if model.instance.name == failed.replica:
                model.instance.post(lc.RequestFailed(failed.generation, failed.why))

    def _check_idle(self) -> None:
        """Tell draining engines that their last request is over."""
        if self._gateway.lifecycle.state in lc.RUNNING and not self._link.connected:
            return  # a gateway serves that has not found us yet: only the deadline can tell
        for model in self._models.values():
            now = model.instance.lifecycle
            if now.state is S.DRAINING and self._link.idle(model.instance.name):
                model.instance.post(lc.Idle(now.generation))

    def _publish(self) -> None:
        if not self._publishing:
            return
        self._version += 1
        routes = tuple(self._route(name, model) for name, model in self._models.items())
        self._link.publish(
            RouteTable(version=self._version, draining=self._draining, models=routes)
        )

    def _route(self, name: str, model: _Model) -> ModelRoute:
        instance, plan = model.instance, model.workload.plan
        now = instance.lifecycle
        launcher = model.workload.launcher
        replicas: tuple[Replica, ...] = ()
        if instance.base_url and now.state in lc.SERVING | {S.DRAINING}:
            replicas = (
                Replica(
                    id=instance.name,
                    generation=now.generation,
                    base_url=instance.base_url,
                    accepting=now.state in lc.SERVING,
                    max_concurrency=plan.tuning.max_concurrency or 1,
                ),
            )
        restarting = now.state in {S.DRAINING, S.STOPPING} and now.after != "stay"
        return ModelRoute(
            name=name,
            state=now.state.value,
            why=now.why,
            expected=now.state in lc.SERVING | {S.STARTING, S.BACKOFF} or restarting,
            engine=plan.engine,
            context=plan.tuning.max_model_len or plan.model.context_max,
            created=model.created,
            routes=launcher.routes,
            quirks=launcher.quirks,
            served=launcher.served(plan),
            chat_template=plan.model.chat_template,
            bos_token=plan.model.bos_token,
            eos_token=plan.model.eos_token,
            replicas=replicas,
            lost=crash_of(instance),
        )

    # --- what the admin API asks ----------------------------------------------------------------

    def plan(self, model: str) -> EnginePlan:
        """The plan in use, relaxed or not. Raises UnknownModel."""
        return self._find(model).workload.plan

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the served models."""
        return tuple(self._models)

    def restart_model(self, model: str, drain_s: float | None) -> None:
        """Drain, stop and launch again; returns at once."""
        found = self._find(model, to_order=True)
        drain = self.orders.drain_s if drain_s is None else drain_s
        self.store.add_event("model.restart", model, actor="admin", drain_s=drain)
        found.instance.post(lc.Stop(drain, "restart", "restart requested"))

    def stop_model(self, model: str, drain_s: float | None) -> None:
        """Drain and stop; returns at once."""
        found = self._find(model, to_order=True)
        drain = self.orders.drain_s if drain_s is None else drain_s
        self.store.add_event("model.stop", model, actor="admin", drain_s=drain)
        found.instance.post(lc.Stop(drain, "stay", "stopped by an operator"))

    def start_model(self, model: str) -> None:
        """Launch what was stopped or has failed; returns at once."""
        found = self._find(model, to_order=True)
        self.store.add_event("model.start", model, actor="admin")
        found.instance.post(lc.Start("start requested"))

    def _find(self, model: str, to_order: bool = False) -> _Model:
        if to_order and self._draining:
            raise Draining("the server is shutting down and takes no orders", retry_after=5)
        if model not in self._models:
            known = ", ".join(self._models) or "none"
            raise UnknownModel(f"no model of that name is served here (served: {known})")
        return self._models[model]

    def instance(self, engine: str) -> Instance:
        """The instance called `engine`, e.g. "demo-0" or "gateway-0". Raises NotFound."""
        for instance in (*(m.instance for m in self._models.values()), self._gateway):
            if instance.name == engine:
                return instance
        raise NotFound("no engine of that id; GET /admin/engines lists them")

    def instances(self) -> list[dict[str, Any]]:
        """One row per engine and gateway, for display."""
        rows = [self.describe(model.instance) for model in self._models.values()]
        return [*rows, self.describe(self._gateway)]

    def describe(self, instance: Instance) -> dict[str, Any]:
        """What is known of one instance. Times in seconds, sizes in bytes."""
        return describe(instance, self._link.in_flight(instance.name), self._link.waiting())
