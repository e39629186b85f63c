"""Connections to engines: kept alive between calls, never shared, dropped before engines do it."""

from __future__ import annotations

import asyncio
import errno
from functools import lru_cache
from urllib.parse import urlsplit

from orchestrator.errors import GatewayBusy, RequestError, UpstreamBroken
from orchestrator.gateway.engine_connection import Address, EngineConnection

_CONNECT_S = 2.0
_IDLE_S = 2.0  # servers of engines close an idle connection after 5 s: ours is gone before
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL}


class NotReached(UpstreamBroken):
    """The engine could not be reached: nothing was sent, so another try is safe."""


@lru_cache(maxsize=1024)
def address_of(base_url: str) -> Address:
    """The address in `http://host:port`."""
    parts = urlsplit(base_url)
    return Address(parts.hostname or "", parts.port or 80)


@lru_cache(maxsize=4096)
def head_of(base_url: str, path: str) -> bytes:
    """What a call's head begins with; its length and an empty line follow."""
    address = address_of(base_url)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{address.port}\r\n"
        "accept: text/event-stream, application/json\r\n"
        "content-type: application/json\r\ncontent-length: "
    ).encode()


class EnginePool:
    """All connections to engines of this process."""

    def __init__(self) -> None:
        self._idle: dict[Address, list[EngineConnection]] = {}
        self._open: set[EngineConnection] = set()

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._open)

    def take(self, address: Address) -> EngineConnection | None:
        """An idle connection, the last used first; None where one has to be made."""
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if connection.usable(_IDLE_S):
                return connection
            connection.abort()
        return None

    async def connect(self, address: Address) -> EngineConnection:
        """A new connection. Raises NotReached, or GatewayBusy where no descriptor is left."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self, address), address.host, address.port
                )
        except (OSError, TimeoutError) as error:
            raise not_reached(error) from error
        return connection

    # --- what connections tell ------------------------------------------------------------------

    def opened(self, connection: EngineConnection) -> None:
        """It has been made."""
        self._open.add(connection)

    def free(self, connection: EngineConnection) -> None:
        """Its call is over, and it can take another."""
        self._idle.setdefault(connection.address, []).append(connection)

    def closed(self, connection: EngineConnection) -> None:
        """It is gone."""
        self._open.discard(connection)
        idle = self._idle.get(connection.address)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def sweep(self) -> None:
        """Drop what has been idle for too long, or does not come to its end."""
        for connection in [each for each in self._open if each.outlived(_IDLE_S)]:
            connection.abort()
        self._idle = {address: idle for address, idle in self._idle.items() if idle}

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.abort()


def not_reached(error: BaseException) -> RequestError:
    """Whose fault it is that there is no connection: ours where we have no descriptor for it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OURS:
            return GatewayBusy("the gateway has no file descriptors left; try again")
        cause = cause.__cause__ or cause.__context__
    return NotReached("the engine does not take connections")
