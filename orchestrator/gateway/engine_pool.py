"""Connections to engines: kept alive between calls, never shared, dropped before engines do it.

Where several clients are served and the last idle one is taken, another is made meanwhile: whoever
comes next does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
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
    """The address in `http://host:port`, or https; a path may follow."""
    parts = urlsplit(base_url)
    tls = parts.scheme == "https"
    return Address(parts.hostname or "", parts.port or (443 if tls else 80), tls)


def target_of(base_url: str, path: str) -> str:
    """The path of a server that has its API at `base_url`, which may end in the `/v1` of `path`."""
    return urlsplit(base_url).path.rstrip("/").removesuffix("/v1") + path


class EnginePool:
    """All connections to engines of this process. `key` is given to every one of them."""

    def __init__(self, key: str | None = None) -> None:
        self.head = lru_cache(maxsize=4096)(self._head)
        self._key = "" if key is None else f"authorization: Bearer {key}\r\n"
        self._context: ssl.SSLContext | None = None
        self._idle: dict[Address, list[EngineConnection]] = {}
        self._open: set[EngineConnection] = set()
        self._coming: dict[Address, asyncio.Task[None]] = {}

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._open)

    def take(self, address: Address) -> EngineConnection | None:
        """An idle connection, the last used first; None where one has to be made."""
        idle = self._idle.get(address)
        connection: EngineConnection | None = None
        while idle:
            connection = idle.pop()
            if connection.usable(_IDLE_S):
                break
            connection.abort()
        else:
            connection = None
        others = len(self._open) - (connection is not None)
        if others and not idle and address not in self._coming:
            self._coming[address] = asyncio.get_running_loop().create_task(self._spare(address))
        return connection

    async def _spare(self, address: Address) -> None:
        """Have one more ready. Who needs it and finds none makes it, and tells what is wrong."""
        with contextlib.suppress(RequestError):
            connection = await self.connect(address)
            connection.used = True  # its engine may close it while it idles, as one that served
            self.free(connection)
        del self._coming[address]

    async def connect(self, address: Address) -> EngineConnection:
        """A new connection. Raises NotReached, or GatewayBusy where no descriptor is left."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self, address), address.host, address.port,
                    ssl=self._tls() if address.tls else None,
                )  # fmt: skip
        except (OSError, TimeoutError) as error:
            raise not_reached(error) from error
        return connection

    def _head(self, base_url: str, path: str) -> bytes:
        """What a call's head begins with; its length and an empty line follow."""
        address = address_of(base_url)
        host = f"[{address.host}]" if ":" in address.host else address.host
        return (
            f"POST {target_of(base_url, path)} HTTP/1.1\r\nhost: {host}:{address.port}\r\n"
            f"{self._key}accept: text/event-stream, application/json\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()

    def _tls(self) -> ssl.SSLContext:
        """What the system trusts, or SSL_CERT_FILE; read when it is first needed."""
        if self._context is None:
            self._context = ssl.create_default_context()
        return self._context

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
        for task in self._coming.values():
            task.cancel()
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
