"""From one supervisor to the next: processes that are taken over, and those that are left."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import Runtime
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.crew import Crew
from orchestrator.supervision.keeper import Keeper
from orchestrator.supervision.store import Saved, Store
from orchestrator.supervision.workload import Workload

_log = logging.getLogger("engineroom.supervisor")
S = lc.State


def still_wanted(workload: Workload, saved: Saved) -> bool:
    """Whether a running process is what we would start: same wish, same command line."""
    listen = saved.record.spec.listen
    same_wish = saved.fingerprint == workload.fingerprint
    return same_wish and listen is not None and workload.command(listen) == saved.record.spec


class Succession:
    """Takes over what an earlier supervisor ran, by its records. `grace_s` is for what is ended."""

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
            await stale.stop(self._grace_s)
        self._store.forget(name)
        return False

    def _leave(self, name: str, why: str) -> None:
        _log.warning("engine=%s is left as it is: %s", name, why)
        self._store.add_event("engine.left", name, why=why)
