"""Power over one container."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from typing import Any

from engine_launchers.base import ExitResult
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import ContainerHold, HandleRecord
from orchestrator.runtimes.docker.connection import Connection, Refused
from orchestrator.runtimes.docker.logs import Follower
from orchestrator.runtimes.docker.watcher import Watcher, remove

_log = logging.getLogger("engineroom.docker")
_AGAIN_S = 1.0
_TERMS = 2
_LOOK_S = 0.1


class ContainerHandle:
    """Holds one container, follows its output, and removes it once it has ended."""

    def __init__(
        self,
        record: HandleRecord,
        connection: Connection,
        watcher: Watcher,
        follower: Follower,
    ) -> None:
        hold = record.hold
        if not isinstance(hold, ContainerHold) or hold.id is None:
            raise TypeError(f"{record.name} is no container that runs, but of {record.runtime}")
        self._record, self._name, self._id = record, hold.container, hold.id
        self._connection, self._watcher, self._follower = connection, watcher, follower
        self._exit: asyncio.Future[ExitResult] = asyncio.get_running_loop().create_future()
        self._stop_by: float | None = None
        self._ending: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(
            self._attend(watcher.hold(self._name, hold.id)), name=self._name
        )

    @property
    def record(self) -> HandleRecord:
        """The record, with the container's id and address."""
        return self._record

    def watch_record(self, tell: Callable[[HandleRecord], None]) -> None:
        """A container stays what it is."""

    async def wait(self) -> ExitResult:
        """How it ended; any number of callers."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> ExitResult:
        """TERM, TERM again half-way, KILL; returns when the container is gone.

        While the Docker Engine is away this goes on until it is back.
        """
        by = time.monotonic() + grace_s
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name=f"stop {self._name}")
        return await self.wait()

    def detach(self) -> None:
        """Let go of it; it runs on."""
        for task in (self._task, self._ending):
            if task is not None:
                task.cancel()
        self._watcher.release(self._name)
        self._follower.close()

    async def owns(self, host: str, port: int) -> bool:
        """Its address is its own."""
        return True

    async def _attend(self, end: asyncio.Future[ExitResult]) -> None:
        result = await end
        try:
            await asyncio.to_thread(self._follower.finish)
            await remove(self._connection, self._id)
        except LaunchFailed as error:  # it is collected later
            _log.warning("container %s stays for now: %s", self._name, error)
        except Exception:  # noqa: BLE001 - whatever stays, its end has to be told
            _log.exception("container %s stays for now", self._name)
        self._watcher.release(self._name)
        await asyncio.to_thread(shutil.rmtree, self._record.folder, ignore_errors=True)
        self._exit.set_result(result)

    async def _end(self) -> None:
        while not self._exit.done():
            try:
                await self._press()
            except Exception:  # noqa: BLE001 - whatever it is, it has to end
                _log.exception("container %s could not be stopped; once more", self._name)
                await asyncio.wait({self._exit}, timeout=_AGAIN_S)

    async def _press(self) -> None:
        """TERM and KILL, each in its time, until it has ended."""
        if await self._asked(lambda c: c.inspect_container(self._id)["State"].get("Paused")):
            await self._asked(lambda c: c.unpause(self._id))
        terms, due = 0, 0.0
        while not self._exit.done():
            now = time.monotonic()
            by = now if self._stop_by is None else self._stop_by
            if now >= max(by, due if terms > _TERMS else 0):
                await self._asked(lambda c: c.kill(self._id, "SIGKILL"))
                terms, due = _TERMS + 1, now + _AGAIN_S
            elif terms < _TERMS and now >= due:
                await self._asked(lambda c: c.kill(self._id, "SIGTERM"))
                terms, due = terms + 1, now + (by - now) / 2
            await asyncio.wait({self._exit}, timeout=_LOOK_S)

    async def _asked(self, ask: Callable[[Any], Any]) -> Any:
        """What the engine answers to an order; None where the container has ended, or it is away"""
        try:
            return await self._connection.call(ask)
        except Refused as error:
            if error.status not in (404, 409):
                _log.warning("container %s: %s", self._name, error)
            self._watcher.look_soon()
        except LaunchFailed as error:
            _log.warning("container %s: %s", self._name, error)
        return None
