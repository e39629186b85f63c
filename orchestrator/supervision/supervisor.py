"""The control plane: owns every model and engine, tells the gateways, answers the admin API.

Start-up order: adopt what is alive → listen for gateways → launch what is missing.
The first route table is sent when every adopted engine stands in it again, so a gateway that served
on alone never sees its models vanish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx

from engine_launchers.base import EnginePlan
from orchestrator.control import RouteTable
from orchestrator.errors import LaunchFailed, NotFound
from orchestrator.observability.control_metrics import ControlMetrics
from orchestrator.runtimes.base import HandleRecord, Runtime, ShimHold
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.crew import Crew
from orchestrator.supervision.figures import add_series, count_change
from orchestrator.supervision.footprint import taken
from orchestrator.supervision.gateways import GatewayLink
from orchestrator.supervision.instance import Change, Hooks, Instance
from orchestrator.supervision.keeper import Keeper
from orchestrator.supervision.ledger import Ledger, planned
from orchestrator.supervision.lessons import Lessons
from orchestrator.supervision.orders import ModelOrder, Orders
from orchestrator.supervision.pool import AT_REST, Pool
from orchestrator.supervision.routes import route
from orchestrator.supervision.standing import applied
from orchestrator.supervision.store import Saved, Store
from orchestrator.supervision.succession import Succession, still_wanted
from orchestrator.supervision.views import describe
from orchestrator.supervision.workload import Workload
from orchestrator.supervision.workloads import EngineWorkload, GatewayWorkload

S = lc.State


class Supervisor:
    """One per data directory. It starts `gateways`; those that run elsewhere find it themselves."""

    def __init__(
        self,
        orders: Orders,
        store: Store,
        runtimes: Mapping[str, Runtime],
        gateways: tuple[GatewayWorkload, ...],
        client: httpx.AsyncClient,
    ) -> None:
        self.orders, self.store, self.metrics = orders, store, ControlMetrics()
        self._runtimes, self._client = runtimes, client
        self.link = GatewayLink(orders.control_socket, self._post, self._on_gateway, self._on_speed)
        self._version = 0
        self.draining = False
        self.shutdown_drain_s: float | None = None
        self.ended = False
        self._publishing = False
        self._hooks = Hooks(
            self._admit, self._on_change, self._save, self._forget, self.link.work, self._held_anew
        )
        self.crew = Crew()
        self._pools: dict[str, Pool] = {}
        self.ledger = Ledger(orders.budget)
        self.lessons = Lessons(store, orders.hardware, orders.policy.stable_s)
        self.keeper = Keeper(
            self._pools, self.ledger, orders.rooms, self.link.demand, taken, self.lessons.sample,
            store.add_event, self.publish, orders.drain_s, orders.memory_wait_s,
            left=self.metrics.evicted,
        )  # fmt: skip
        grace_s = orders.policy.stop_grace_s
        self._succession = Succession(self.crew, self.keeper, store, runtimes, grace_s)
        self._keeping: asyncio.Task[None] | None = None
        self._gateways = tuple(self._instance(each, "process") for each in gateways)

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt, listen, launch. Returns when everything is under way, not when it is ready.

        Raises LaunchFailed where this machine cannot run processes as we need it.
        """
        saved = {row.name: row for row in self.store.saved()}
        wanted = {"process", *(order.plan.runtime for order in self.orders.models)}
        for name in sorted(wanted | {row.record.runtime for row in saved.values()}):
            available = await self._runtimes[name].check()
            if not available.usable and name in wanted:
                raise LaunchFailed(f"engines cannot be started here: {available.why}")
            if not available.usable:  # what it ran is left to a start that reaches it
                saved = {key: row for key, row in saved.items() if row.record.runtime != name}
        for order in self.orders.models:
            self._pool(order, saved)
        self.store.standing.keep_only(self._pools)
        for gateway in self._gateways:
            add_series(self.metrics, gateway)
            self.crew.add(gateway)
        adopted = await self._succession.adopt(saved)
        for pool in self._pools.values():
            pool.trim(adopted)
            if pool.off:  # its supervisor was lost before its engines had ended
                pool.unload(self.orders.drain_s, pool.why)
        await self.link.start()
        for gateway in self._gateways:
            if gateway.name not in adopted:
                gateway.post(lc.Start("wanted at start"))
        self._publishing = True
        self.publish()
        self._keeping = asyncio.create_task(self.keeper.run(), name="keeper")

    def add(self, order: ModelOrder) -> Pool:
        """Serve one more model."""
        return self._pool(order, {})

    def drop(self, model: str) -> None:
        """Serve a model no more; its engines have ended."""
        self._pools.pop(model, None)
        self.store.standing.put(model, None)
        self.publish()

    def _pool(self, order: ModelOrder, saved: Mapping[str, Saved]) -> Pool:
        def make(order: ModelOrder, name: str, generation: int) -> Instance:
            instance = self._make(order, name, saved.get(name), generation)
            add_series(self.metrics, instance)
            return instance

        def has_room(plan: EnginePlan) -> bool:
            return self.keeper.has_room(planned(plan.estimate))

        self.metrics.add_model(order.name)
        standing = self.store.standing.still(order)
        pool = Pool(applied(order, standing), make, self.crew, has_room, self._told)
        pool.asked = order
        self._pools[order.name] = pool
        if standing is not None:
            actor, says = standing.actor, standing.says
            self.store.add_event("model.order_stands", order.name, actor=actor, **says)
            if standing.off:
                pool.stay_out()
        for name in sorted(saved):
            row = saved[name]
            if row.plan is not None and row.plan.model.id == order.name:
                pool.hire(name, row.record.generation)
        pool.fill()
        return pool

    def _make(self, order: ModelOrder, name: str, saved: Saved | None, generation: int) -> Instance:
        workload = self._workload(order, name, order.plan)
        if saved and saved.plan:  # the plan that runs, relaxed or not, where it still fits the wish
            moved = saved.plan.engine != order.plan.engine and saved.record.spec.argv
            program = saved.record.spec.argv[0] if moved else order.program
            running = self._workload(order, name, saved.plan, program)
            workload = running if still_wanted(running, saved) else workload
        return self._instance(workload, workload.plan.runtime, generation)

    def _instance(self, workload: Workload, runtime: str, generation: int = 0) -> Instance:
        orders, where = self.orders, self._runtimes[runtime]
        return Instance(workload, where, orders.policy, orders.probes, self._hooks, generation)

    def _workload(
        self, order: ModelOrder, name: str, plan: EnginePlan, program: str | None = None
    ) -> EngineWorkload:
        launchers, following = self.orders.launchers, self.orders.next_engine
        return EngineWorkload(name, plan, order, launchers, following, self._client, program)

    async def stop(self) -> None:
        """Drain and end everything: no new work, engines after their last request, gateway last.

        An engine whose runtime is away is left for the next start to find.
        """
        self.draining = True
        self.store.add_event("shutdown", "supervisor")
        if self._keeping is not None:
            self._keeping.cancel()
        for pool in tuple(self._pools.values()):
            await pool.close()
        self.publish()
        engines = self.crew.besides(self._gateways)
        for instance in engines:
            drain = self.orders.drain_s if self.shutdown_drain_s is None else self.shutdown_drain_s
            instance.post(lc.Stop(drain, "stay", "shutdown"))
        await self._succession.rest(engines)
        for gateway in self._gateways:
            gateway.post(lc.Stop(0, "stay", "shutdown"))
            await gateway.wait_for(AT_REST)
        self.ended = True
        await self.close()

    def hurry(self) -> None:
        """Cut a shutdown short: what drains is ended now."""
        for instance in self.crew.besides(self._gateways):
            instance.post(lc.Stop(0, "stay", "second signal"))

    async def close(self) -> None:
        """Let go of everything; what still runs goes on without us."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self.crew.close()
        await self.link.close()

    async def ready(self) -> tuple[Instance, ...]:
        """Wait until the gateway and all that is preloaded are READY or FAILED; those that failed.

        A model that cannot be loaded beside the others is not waited for.
        """
        settled = frozenset({S.READY, S.FAILED})
        pools = [pool for pool in self._pools.values() if not pool.off]
        wanted = [pool for pool in pools if pool.wanted or pool.order.preload]
        first = [pool.settled() for pool in wanted]
        await asyncio.gather(*first, *(each.wait_for(settled) for each in self._gateways))
        engines = [each for pool in wanted for each in pool.instances]
        return tuple(e for e in (*engines, *self._gateways) if e.lifecycle.state is S.FAILED)

    # --- what instances and gateways report -----------------------------------------------------

    def _on_change(self, instance: Instance, change: Change) -> None:
        name = instance.name
        count_change(self.metrics, instance, change)
        self.store.add_event(
            "engine.state",
            name,
            old=change.old,
            new=change.new,
            why=change.why,
            generation=change.lifecycle.generation,
        )
        if change.new is S.READY and change.old is S.STARTING:
            self.lessons.ready(instance, change.seconds)
        if change.new is S.STARTING and change.lifecycle.cause:
            instance.restarts += 1
        workload = instance.workload
        if isinstance(workload, EngineWorkload):
            self.metrics.relaxed(name, workload.plan.rung)
            relaunched = change.new is S.STARTING and change.old is not S.SLEEPING
            if relaunched or change.new in {S.BACKOFF, S.STOPPED, S.FAILED}:
                self.keeper.ended(instance)
            elif change.new is S.SLEEPING:
                self.keeper.slept(instance, change.lifecycle.level or 1)
        self.keeper.poke()
        self.publish()
        self._check_idle()

    async def _admit(self, instance: Instance) -> None:
        await self.keeper.admit(instance)

    def _save(self, instance: Instance, record: HandleRecord) -> None:
        workload = instance.workload
        plan = workload.plan if isinstance(workload, EngineWorkload) else None
        self.store.save(workload.fingerprint, record, plan, instance.lifecycle.why)

    def _held_anew(self, instance: Instance, record: HandleRecord) -> None:
        self._save(instance, record)
        shim = record.hold.shim if isinstance(record.hold, ShimHold) else None
        self.store.add_event("engine.shim_lost", instance.name, another=shim.pid if shim else None)

    def _forget(self, instance: Instance) -> None:
        self.lessons.forget(instance.name)
        self.store.forget(instance.name)

    def _on_gateway(self) -> None:
        self.metrics.gateways.set(self.link.connected)
        self.keeper.poke()
        self._check_idle()

    def _post(self, replica: str, event: lc.Event) -> None:
        instance = self.crew.get(replica)
        if instance is not None:
            instance.post(event)

    def _on_speed(self, replica: str, generation: int, rate: float) -> None:
        instance = self.crew.get(replica)
        if instance is not None and instance.lifecycle.generation == generation:
            self.lessons.speed(instance, rate)

    def _check_idle(self) -> None:
        """Tell draining engines that their last request is over."""
        mine = [each.lifecycle.state in lc.RUNNING for each in self._gateways]
        if (any(mine) or not mine) and not self.link.connected:
            return  # a gateway serves that has not found us yet: only the deadline can tell
        for instance in self.crew:
            now = instance.lifecycle
            if now.state is S.DRAINING and self.link.idle(instance.name):
                instance.post(lc.Idle(now.generation))

    def _told(self, type: str = "", subject: str = "", **detail: Any) -> None:
        """A pool changed, and perhaps there is something to write down."""
        if type:
            self.store.add_event(type, subject, **detail)
        self.keeper.poke()
        self.publish()

    def publish(self) -> None:
        """Send the routes as they are now to every gateway."""
        if not self._publishing:
            return
        self._version += 1
        now, launchers = time.monotonic(), self.orders.launchers
        pools = self._pools.values()
        routes = tuple(route(pool, launchers[pool.plan.engine], now) for pool in pools)
        self.link.publish(RouteTable(version=self._version, draining=self.draining, models=routes))

    # --- looking ----------------------------------------------------------------------------------

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Every served model by name."""
        return self._pools

    def instance(self, engine: str) -> Instance:
        """The instance called `engine`, e.g. "demo-0" or "gateway-0". Raises NotFound."""
        if (found := self.crew.get(engine)) is not None:
            return found
        raise NotFound("no engine of that id; GET /admin/engines lists them")

    def instances(self) -> list[dict[str, Any]]:
        """One row per engine and gateway, for display."""
        rows = (*self.crew.besides(self._gateways), *self._gateways)
        return [self.describe(each) for each in rows]

    def describe(self, instance: Instance) -> dict[str, Any]:
        """What is known of one instance. Times in seconds, sizes in bytes."""
        claim = self.ledger.claims.get(instance.name)
        return describe(instance, self.link, claim)
