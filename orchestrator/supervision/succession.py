"""From one supervisor to the next: processes that are taken over, and those that are left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import Runtime
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.crew import Crew
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.keeper import Keeper
from orchestrator.supervision.pool import AT_REST
from orchestrator.supervision.store import Saved, Store
from orchestrator.supervision.workload import Workload
from orchestrator.supervision.workloads import EngineWorkload

_log = logging.getLogger("engineroom.supervisor")
S = lc.State
_MARGIN_S = 5.0  # beyond the grace: to notice that a runtime is away, and for what takes long
_LOOK_S = 0.5


def still_wanted(workload: Workload, saved: Saved) -> bool:
    """Whether a running process is what we would start: same wish, same command line."""
    listen = saved.record.spec.listen
    same_wish = saved.fingerprint == workload.fingerprint
    return same_wish and listen is not None and workload.command(listen) == saved.record.spec


class Succession:
    """Takes over what an earlier supervisor ran, by its records, and leaves what cannot be ended.

    `grace_s` is for what is ended.
    """

    def __init__(
        self,
        crew: Crew,
        keeper: Keeper,
        store: Store,
        runtimes: Mapping[str, Runtime],
        grace_s: float,
    ) -> None:
        self._crew, self._keeper, self._store = crew, keeper, store
        self._runtimes, self._grace_s = runtimes, grace_s

    async def adopt(self, saved: Mapping[str, Saved]) -> set[str]:
        """The names of those that were taken over; one that nobody can say anything of is left."""
        adopted: set[str] = set()
        for name, row in saved.items():
            try:
                if await self._adopt(name, row):
                    adopted.add(name)
            except LaunchFailed as error:
                self._leave(name, error.message)
        return adopted

    async def _adopt(self, name: str, row: Saved) -> bool:
        """Take over a process where it is wanted, else end it. Raises LaunchFailed."""
        instance = self._crew.get(name)
        wanted = instance is not None and still_wanted(instance.workload, row)
        if instance is not None and wanted and await instance.adopt(row.record):
            self._keeper.adopted(instance)
            self._store.add_event("engine.adopted", name, generation=row.record.generation)
            await instance.wait_for(lc.RUNNING | {S.BACKOFF, S.FAILED})
            return True
        runtime = self._runtimes[row.record.runtime]
        if not wanted and (stale := await runtime.recover(row.record)) is not None:
            _log.info("engine=%s is not wanted any more and is stopped", name)
            self._store.add_event("engine.unwanted", name)
            if why := await self._given_time(stale.stop(self._grace_s), runtime):
                stale.detach()
                raise LaunchFailed(why)
        self._store.forget(name)
        return False

    async def rest(self, engines: Iterable[Instance]) -> None:
        """Wait until they have ended. What cannot be ended is left: its runtime is away."""
        await asyncio.gather(*(self._rest(each) for each in engines))

    async def _rest(self, engine: Instance) -> None:
        await engine.wait_for(AT_REST | {S.STOPPING})
        workload = engine.workload
        name = workload.plan.runtime if isinstance(workload, EngineWorkload) else "process"
        runtime = self._runtimes[name]
        if why := await self._given_time(engine.wait_for(AT_REST), runtime):
            self._leave(engine.name, why)

    async def _given_time(self, end: Coroutine[Any, Any, object], runtime: Runtime) -> str:
        """Empty where the end came; else why the runtime cannot bring it about, once that takes
        longer than it may."""
        task, patience = asyncio.ensure_future(end), self._grace_s + _MARGIN_S
        try:
            while not (await asyncio.wait({task}, timeout=patience))[0]:
                if why := runtime.away():
                    return why
                patience = _LOOK_S
            await task
        finally:
            task.cancel()
        return ""

    def _leave(self, name: str, why: str) -> None:
        _log.warning("engine=%s is left as it is: %s", name, why)
        self._store.add_event("engine.left", name, why=why)
