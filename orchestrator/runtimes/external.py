"""Engines that somebody else runs: a server at an address, and nothing to start or to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from engine_launchers.base import ExitResult, LaunchSpec, Listen
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import Availability, Handle, HandleRecord, NoHold, Tell


class ExternalRuntime:
    """Holds on to servers that run anyway. Their health is for probes to find out."""

    async def check(self) -> Availability:
        """Usable everywhere."""
        return Availability(usable=True)

    def away(self) -> str:
        """Nothing stands between."""
        return ""

    def listen(self) -> Listen:
        """There is no server without an address."""
        raise LaunchFailed("a server that somebody else runs has to be given by its address")

    async def prepare(self, spec: LaunchSpec, tell: Tell) -> None:
        """Nothing has to be fetched."""

    def record(self, name: str, generation: int, spec: LaunchSpec) -> HandleRecord:
        """A record without files: there is no shim and no log of ours."""
        none = Path("/dev/null")
        return HandleRecord(
            name=name, generation=generation, spec=spec, hold=NoHold(), folder=none, log=none
        )

    async def start(self, record: HandleRecord) -> Handle:
        """Nothing is started."""
        return ExternalHandle(record)

    async def recover(self, record: HandleRecord) -> Handle | None:
        """The same server, as far as anybody can tell: the next probe does."""
        return ExternalHandle(record)


class ExternalHandle:
    """A server that is not ours. `stop` ends our use of it, not the server."""

    def __init__(self, record: HandleRecord) -> None:
        self._record = record
        self._exit: asyncio.Future[ExitResult] = asyncio.get_running_loop().create_future()

    @property
    def record(self) -> HandleRecord:
        """The record that it was made from."""
        return self._record

    async def wait(self) -> ExitResult:
        """Ends with `stop` only: whether the server lives is not seen from here."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> ExitResult:
        """Let go of the server, which runs on."""
        if not self._exit.done():
            self._exit.set_result(ExitResult(code=0))
        return await self.wait()

    def detach(self) -> None:
        """Nothing is attached."""

    def watch_record(self, tell: Callable[[HandleRecord], None]) -> None:
        """Its record never changes."""

    async def owns(self, host: str, port: int) -> bool:
        """Whoever answers is the one we were told of."""
        return True
