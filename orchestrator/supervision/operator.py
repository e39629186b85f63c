"""What operators may order of a running server; every order is written down with who gave it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from typing import Any

from engine_launchers.base import EnginePlan
from orchestrator.errors import Conflict, Draining, EngineRoomError, UnknownModel
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.ledger import planned
from orchestrator.supervision.orders import ModelOrder
from orchestrator.supervision.pool import Pool
from orchestrator.supervision.schedule import Phase
from orchestrator.supervision.standing import applied
from orchestrator.supervision.supervisor import Supervisor
from orchestrator.supervision.workloads import EngineWorkload

_log = logging.getLogger("engineroom.operator")


class Operator:
    """Turns orders into work of pools. All but `reload` return at once."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._reloading = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None
        self._again = False

    # --- one model --------------------------------------------------------------------------------

    def restart(self, model: str, drain_s: float | None) -> Pool:
        """Replace every engine, the new one first where there is room for it."""
        pool = self._pool(model)
        drain = self._drain(drain_s)
        self._note("model.restart", model, drain_s=drain)
        self._stands(pool, off=False)
        pool.off, pool.why, pool.refused_until = False, "", 0.0
        if pool.phase in {Phase.OFF, Phase.ABSENT, Phase.FAILED}:
            self._load(pool, "restart requested")
        else:
            pool.spawn(lambda: pool.roll(pool.order, drain, "restart requested"))
        return pool

    def stop(self, model: str, drain_s: float | None) -> Pool:
        """Drain and stop; it stays out until it is started again."""
        pool = self._pool(model)
        drain = self._drain(drain_s)
        self._note("model.stop", model, drain_s=drain)
        self._stands(pool, off=True)
        pool.stay_out()
        pool.unload(drain, "stopped by an operator")
        self._supervisor.keeper.poke()
        return pool

    def unload(self, model: str, drain_s: float | None) -> Pool:
        """Drain and stop; the next request loads it again."""
        pool = self._pool(model)
        drain = self._drain(drain_s)
        self._note("model.unload", model, drain_s=drain, why="unload requested")
        pool.wanted = False
        pool.unload(drain, "unload requested")
        return pool

    def load(self, model: str) -> Pool:
        """Load what is not loaded; others leave for it as they would for a request."""
        pool = self._pool(model)
        self._note("model.load", model, why="load requested")
        self._stands(pool, off=False)
        self._load(pool, "load requested")
        return pool

    def _load(self, pool: Pool, why: str) -> None:
        pool.off, pool.why, pool.refused_until = False, "", 0.0
        if pool.phase in {Phase.ABSENT, Phase.OFF, Phase.ASLEEP}:
            pool.wanted = True  # others may have to make room
        else:
            pool.load(why)
        self._supervisor.keeper.poke()
        self._supervisor.publish()

    def sleep(self, model: str, level: int) -> Pool:
        """Put its engines to sleep, where they can."""
        pool = self._pool(model)
        sleepers = [w for e in pool.instances if isinstance(w := e.workload, EngineWorkload)]
        if not all(each.launcher.watch.sleep for each in sleepers):
            raise Conflict(f"the engine of {model} cannot sleep; unload it instead")
        self._note("model.sleep", model, level=level, why="sleep requested")
        pool.sleep(level, self._drain(None), "sleep requested")
        return pool

    def scale(self, model: str, replicas: int) -> Pool:
        """Have so many engines of it."""
        pool = self._pool(model)
        more = replicas - len(pool.instances)
        if more > 0 and pool.phase is Phase.SERVING:
            lack = self._supervisor.keeper.lacks(planned(pool.plan.estimate, more))
            if lack is not None:
                raise Conflict(f"no room for {more} more engines of {model}: {lack}")
        pool.refused_until = 0.0
        self._note("model.scale", model, replicas=replicas)
        self._stands(pool, replicas=replicas)
        pool.spawn(lambda: pool.scale(replicas, self._drain(None)))
        return pool

    def pin(self, model: str, pinned: bool) -> Pool:
        """Keep it in memory, or allow that it leaves."""
        pool = self._pool(model)
        self._note("model.pin" if pinned else "model.unpin", model)
        self._stands(pool, pin=pinned)
        keeping = replace(pool.order.keeping, pin=pinned)
        pool.order = replace(pool.order, keeping=keeping)
        self._supervisor.keeper.poke()
        return pool

    def drain(self, engine: str, drain_s: float | None) -> None:
        """Let one engine finish its requests and stop it; other replicas go on."""
        self._refuse_at_end()
        instance = self._supervisor.instance(engine)
        if not isinstance(instance.workload, EngineWorkload):
            raise Conflict(f"{engine} is no engine: without a gateway nobody is served")
        drain = self._drain(drain_s)
        self._note("engine.drain", engine, drain_s=drain)
        instance.post(lc.Stop(drain, "stay", "drained by an operator"))

    def plan(self, model: str) -> EnginePlan:
        """The plan in use, relaxed or not. Raises UnknownModel."""
        return self._pool(model, to_order=False).plan

    # --- the settings -----------------------------------------------------------------------------

    async def reload(self) -> dict[str, Any]:
        """Read the settings anew and change what they changed, nothing else.

        Returns the names that were `added`, `removed`, `changed`, `kept`, and the settings in
        `needs_restart` that only a new start applies. Raises EngineRoomError where the settings are
        not valid; nothing is changed then. Raises Conflict while another reload works.
        """
        self._refuse_at_end()
        if self._reloading.locked():
            raise Conflict("a reload is under way; ask again when it has ended")
        return await self._reload("admin")

    def reload_soon(self) -> None:
        """Reload in the background: a signal, or a file that changed. A bad file is logged.

        Asked again while one works, it is done once more: the last save counts.
        """
        self._again = True
        if self._background is None or self._background.done():
            loop = asyncio.get_running_loop()
            self._background = loop.create_task(self._reload_quietly())

    async def _reload_quietly(self) -> None:
        while self._again:
            self._again = False
            try:
                _log.info("settings reloaded: %s", await self._reload("settings"))
            except Exception as error:  # noqa: BLE001 - the last line: told, and the old ones stay
                _log.error("settings not reloaded, the old ones stay: %s", error)

    async def _reload(self, actor: str) -> dict[str, Any]:
        async with self._reloading:
            try:
                wanted = await self._supervisor.orders.reload()
            except (EngineRoomError, OSError) as error:
                self._note("config.rejected", "settings", actor, why=str(error))
                raise
            self._refuse_at_end()  # the end may have come meanwhile
            told = self._apply({order.name: order for order in wanted.models})
            result = {**told, "needs_restart": list(wanted.fixed)}
            self._note("config.reloaded", "settings", actor, **result)
            return result

    def _apply(self, wanted: dict[str, ModelOrder]) -> dict[str, list[str]]:
        supervisor, drain = self._supervisor, self._drain(None)
        told: dict[str, list[str]] = {"added": [], "removed": [], "changed": [], "kept": []}
        for name, pool in tuple(supervisor.pools.items()):
            if name not in wanted and not pool.leaving:
                told["removed"].append(name)
                pool.leaving = True
                pool.spawn(partial(self._remove, name, pool, drain))
            elif name not in wanted:
                pool.heir = None
        for name, order in wanted.items():
            found = supervisor.pools.get(name)
            if found is None:
                told["added"].append(name)
                supervisor.add(order)
            elif found.leaving:
                told["added"].append(name)
                found.heir = order
            elif _same(found.asked, order):
                told["kept"].append(name)
            else:
                told["changed"].append(name)
                self._change(found, order, drain)
        supervisor.publish()
        supervisor.keeper.poke()
        return told

    def _change(self, pool: Pool, order: ModelOrder, drain_s: float) -> None:
        """Touch only what the settings changed; what an operator ordered since stays."""
        asked, now = pool.asked, pool.order
        pool.asked = order
        wanted = applied(order, self._supervisor.store.standing.still(order))
        if order.preload and not asked.preload:
            pool.wanted = True
        pool.order = replace(
            now,
            keeping=wanted.keeping,
            preload=order.preload,
            max_concurrency=order.max_concurrency,
            routing=order.routing,
            defaults=order.defaults,
        )
        pool.spawn(partial(pool.change, wanted, drain_s, "its settings changed"))

    async def _remove(self, name: str, pool: Pool, drain_s: float) -> None:
        await pool.leave(drain_s, "removed from the settings")
        self._supervisor.drop(name)
        if pool.heir is not None and not self._supervisor.draining:
            self._supervisor.add(pool.heir)
            self._supervisor.publish()
            self._supervisor.keeper.poke()

    # --- common -----------------------------------------------------------------------------------

    def _pool(self, model: str, to_order: bool = True) -> Pool:
        if to_order:
            self._refuse_at_end()
        pools = self._supervisor.pools
        if model not in pools:
            known = ", ".join(pools) or "none"
            raise UnknownModel(f"no model of that name is served here (served: {known})")
        return pools[model]

    def _refuse_at_end(self) -> None:
        if self._supervisor.draining:
            raise Draining("the server is shutting down and takes no orders", retry_after=5)

    def _drain(self, asked: float | None) -> float:
        return self._supervisor.orders.drain_s if asked is None else asked

    def _stands(self, pool: Pool, **change: Any) -> None:
        """Write the order down where a later supervisor finds it."""
        self._supervisor.store.standing.order(pool.asked, "admin", time.time(), **change)

    def _note(self, type: str, subject: str, actor: str = "admin", **detail: Any) -> None:
        self._supervisor.store.add_event(type, subject, actor=actor, **detail)


def _same(old: ModelOrder, new: ModelOrder) -> bool:
    """Whether two orders want the same; what the machine had free is no part of a wish."""
    return replace(new, plan=old.plan, program=old.program) == old
