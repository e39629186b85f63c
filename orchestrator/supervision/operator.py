"""What operators may order of a running server; every order is written down with who gave it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from engine_launchers.base import EnginePlan
from orchestrator.errors import Conflict, Draining, EngineRoomError, UnknownModel
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.orders import ModelOrder
from orchestrator.supervision.pool import Pool
from orchestrator.supervision.schedule import Phase
from orchestrator.supervision.supervisor import Supervisor

_log = logging.getLogger("engineroom.operator")


class Operator:
    """Turns orders into work of pools. All but `reload` return at once."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._reloading = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None

    # --- one model --------------------------------------------------------------------------------

    def restart(self, model: str, drain_s: float | None) -> Pool:
        """Replace every engine, the new one first where there is room for it."""
        pool = self._pool(model)
        drain = self._drain(drain_s)
        self._note("model.restart", model, drain_s=drain)
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
        pool.off, pool.wanted, pool.why = True, False, "stopped by an operator"
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
        self._load(pool, "load requested")
        return pool

    def _load(self, pool: Pool, why: str) -> None:
        pool.off, pool.why, pool.refused_until = False, "", 0.0
        if pool.phase is Phase.FAILED:
            pool.load(why)
        else:
            pool.wanted = True
        self._supervisor.keeper.poke()
        self._supervisor.publish()

    def sleep(self, model: str, level: int) -> Pool:
        """Put its engines to sleep, where they can."""
        pool = self._pool(model)
        self._note("model.sleep", model, level=level, why="sleep requested")
        pool.sleep(level, self._drain(None), "sleep requested")
        return pool

    def scale(self, model: str, replicas: int) -> Pool:
        """Have so many engines of it."""
        pool = self._pool(model)
        self._note("model.scale", model, replicas=replicas)
        pool.spawn(lambda: pool.scale(replicas, self._drain(None)))
        return pool

    def pin(self, model: str, pinned: bool) -> Pool:
        """Keep it in memory, or allow that it leaves."""
        pool = self._pool(model)
        self._note("model.pin" if pinned else "model.unpin", model)
        keeping = replace(pool.order.keeping, pin=pinned)
        pool.order = replace(pool.order, keeping=keeping)
        self._supervisor.keeper.poke()
        return pool

    def drain(self, engine: str, drain_s: float | None) -> None:
        """Let one engine finish its requests and stop it; other replicas go on."""
        self._refuse_at_end()
        instance = self._supervisor.instance(engine)
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
        async with self._reloading:
            try:
                wanted = await self._supervisor.orders.reload()
            except (EngineRoomError, OSError) as error:
                self._note("config.rejected", "settings", why=str(error))
                raise
            told = self._apply({order.name: order for order in wanted.models})
            result = {**told, "needs_restart": list(wanted.fixed)}
            self._note("config.reloaded", "settings", **result)
            return result

    def reload_soon(self) -> None:
        """Reload in the background: a signal, or a file that changed. A bad file is logged."""
        if self._again is None or self._again.done():
            self._again = asyncio.get_running_loop().create_task(self._reload_quietly())

    async def _reload_quietly(self) -> None:
        try:
            _log.info("settings reloaded: %s", await self.reload())
        except (EngineRoomError, OSError) as error:
            _log.error("settings not reloaded, the old ones stay: %s", error)

    def _apply(self, wanted: dict[str, ModelOrder]) -> dict[str, list[str]]:
        supervisor, drain = self._supervisor, self._drain(None)
        told: dict[str, list[str]] = {"added": [], "removed": [], "changed": [], "kept": []}
        for name, pool in tuple(supervisor.pools.items()):
            if name not in wanted:
                told["removed"].append(name)
                pool.spawn(partial(self._remove, name, pool, drain))
        for name, order in wanted.items():
            found = supervisor.pools.get(name)
            if found is None:
                told["added"].append(name)
                supervisor.add(order)
            elif _same(found.order, order):
                told["kept"].append(name)
            else:
                told["changed"].append(name)
                self._change(found, order, drain)
        supervisor.publish()
        supervisor.keeper.poke()
        return told

    def _change(self, pool: Pool, order: ModelOrder, drain_s: float) -> None:
        """Touch engines only where their own wish changed."""
        old = pool.order
        if order.fingerprint != old.fingerprint:
            pool.spawn(lambda: pool.roll(order, drain_s, "its settings changed"))
            return
        kept = replace(order, plan=old.plan, replicas=old.replicas)
        pool.order = kept
        if order.replicas != old.replicas:
            pool.spawn(lambda: pool.scale(order.replicas, drain_s))

    async def _remove(self, name: str, pool: Pool, drain_s: float) -> None:
        await pool.leave(drain_s, "removed from the settings")
        self._supervisor.drop(name)

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

    def _note(self, type: str, subject: str, **detail: Any) -> None:
        self._supervisor.store.add_event(type, subject, actor="admin", **detail)


def _same(old: ModelOrder, new: ModelOrder) -> bool:
    """Whether two orders want the same; what the machine had free is no part of a wish."""
    return replace(new, plan=old.plan, program=old.program) == old
