"""Power over one engine: a connection to its shim, or to the one that took the shim's place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from engine_launchers.base import ExitResult
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes import ports, remains
from orchestrator.runtimes.base import HandleRecord

_log = logging.getLogger("engineroom.process")
_CONNECT_S = 10.0  # a shim answers in milliseconds; a machine that swaps gets its time
_STOP_MARGIN_S = 5.0
_TRIES, _AGAIN_S = 5, 1.0  # to give a living engine another shim
LOST = "its shim was lost, and it with it"


@dataclass(frozen=True)
class Link:
    """An open connection to the shim of `record`."""

    record: HandleRecord
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


Reach = Callable[[HandleRecord], Awaitable[Link]]
"""Connects to the shim of a record, or to a new one in its place; raises LaunchFailed."""


async def connect(record: HandleRecord) -> Link:
    """Open the shim's socket and check that it is the shim of this very record.

    Raises LaunchFailed.
    """
    writer: asyncio.StreamWriter | None = None
    socket = remains.hold_of(record).socket
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            hello = remains.parse(await reader.readline())
    except (OSError, TimeoutError) as error:
        if writer is not None:
            writer.close()
        raise LaunchFailed(f"{record.name}: its shim does not answer: {error}") from error
    if record.child is None or hello.get("child") != record.child.model_dump():
        writer.close()
        raise LaunchFailed(f"{record.name}: another process answers on {socket}")
    return Link(record, reader, writer)


class ProcessHandle:
    """A connection to one shim. The lease is renewed as long as this object is attached.

    A shim that is lost while its engine lives is replaced; `watch_record` tells of it.
    """

    def __init__(self, link: Link, reach: Reach, lease_s: float) -> None:
        self._link, self._reach = link, reach
        self._exit: asyncio.Future[ExitResult] = asyncio.get_running_loop().create_future()
        self._tell: Callable[[HandleRecord], None] | None = None
        self._stop_by: float | None = None
        self._given_up = False
        name = link.record.name
        self._tasks = (
            asyncio.create_task(self._serve(), name=f"shim {name}"),
            asyncio.create_task(self._renew(lease_s / 4), name=f"lease {name}"),
        )

    @property
    def record(self) -> HandleRecord:
        """The record, with the identities of shim and child."""
        return self._link.record

    def watch_record(self, tell: Callable[[HandleRecord], None]) -> None:
        """Call `tell` with the new record whenever the engine got another shim."""
        self._tell = tell

    async def wait(self) -> ExitResult:
        """How the engine ended; any number of callers."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> ExitResult:
        """Ask the shim to end the whole tree; returns when it is gone.

        A shim that does not answer in time is ended itself, engine first.
        """
        by = time.monotonic() + grace_s
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        self._send_stop()
        try:
            async with asyncio.timeout(grace_s + _STOP_MARGIN_S):
                return await self.wait()
        except TimeoutError:
            self._given_up = True
            await asyncio.to_thread(remains.end, self.record)
            return await self.wait()

    def detach(self) -> None:
        """Close the connection; the shim keeps its engine until the lease ends."""
        for task in self._tasks:
            task.cancel()
        self._link.writer.close()

    async def owns(self, host: str, port: int) -> bool:
        """Whether it is this engine that listens there, and not a stranger."""
        tree = remains.tree_of(self.record)
        if tree is None:
            return True
        return await asyncio.to_thread(lambda: ports.held_by(host, port, tree.members()))

    def _send(self, order: dict[str, object]) -> None:
        if not self._link.writer.is_closing():
            self._link.writer.write(json.dumps(order).encode() + b"\n")

    def _send_stop(self) -> None:
        if self._stop_by is not None:
            left = max(0.0, self._stop_by - time.monotonic())
            self._send({"op": "stop", "grace_s": left})

    async def _renew(self, every_s: float) -> None:
        while True:
            self._send({"op": "renew"})
            await asyncio.sleep(every_s)

    async def _serve(self) -> None:
        told: dict[str, Any] = {}
        while not told:
            told = await self._heard() or remains.read_json(self.record.folder / "exit.json")
            if not told and (self._given_up or not await self._regained()):
                told = {"error": LOST}
        self._tasks[1].cancel()
        self._link.writer.close()
        self._exit.set_result(remains.exit_result(told))

    async def _heard(self) -> dict[str, Any]:
        """What the shim says of the end; empty where the connection is cut before that."""
        with contextlib.suppress(ConnectionError):
            while line := await self._link.reader.readline():
                told = remains.parse(line)
                if told.get("event") == "exit":
                    return told
        return {}

    async def _regained(self) -> bool:
        """Have a shim again, with the engine as it is; False where nothing of it is left."""
        self._link.writer.close()
        for left in reversed(range(_TRIES)):
            try:
                self._link = await self._reach(self.record)
                break
            except (LaunchFailed, OSError) as error:  # a machine out of memory cannot even fork
                _log.warning("engine=%s lost its shim: %s", self.record.name, error)
                if left and self.record.child and remains.is_alive(self.record.child):
                    await asyncio.sleep(_AGAIN_S)
                    continue
                await asyncio.to_thread(remains.clear, self.record)
                return False
        _log.warning("engine=%s lost its shim; another one took over", self.record.name)
        if self._tell is not None:
            self._tell(self.record)
        self._send_stop()
        return True


@dataclass(frozen=True)
class EndedHandle:
    """A process that was over before anybody could connect to its shim."""

    record: HandleRecord
    exit: ExitResult

    async def wait(self) -> ExitResult:
        """How it ended."""
        return self.exit

    async def stop(self, grace_s: float) -> ExitResult:
        """Nothing is left to stop."""
        return self.exit

    def detach(self) -> None:
        """Nothing is attached."""

    def watch_record(self, tell: Callable[[HandleRecord], None]) -> None:
        """Its record does not change any more."""

    async def owns(self, host: str, port: int) -> bool:
        """Nothing of it answers any more."""
        return True
