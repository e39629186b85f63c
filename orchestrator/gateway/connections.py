"""Clients' connections below HTTP: counted, closed when they take nothing, refused when too many.

The only part that knows the HTTP server. A client that reads slower than its answer is written
holds the engine back, and after `write_timeout_s` without room in its buffer its connection is
reset; others notice nothing. Memory per connection stays at the buffer's high-water mark.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from typing import Any

from prometheus_client import Counter, Gauge
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator.gateway.crowd import Room, room
from orchestrator.observability.metrics import GatewayMetrics

_BUFFER = 128 * 1024  # bytes that the kernel keeps for one client; Linux takes it twice


class Connections:
    """All open client connections of this process."""

    def __init__(self, metrics: GatewayMetrics, write_timeout_s: float) -> None:
        self.write_timeout_s = write_timeout_s
        self.open: Gauge = metrics.connections
        self.slow: Counter = metrics.slow_clients
        self.count = 0
        self._others = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 32

    def room(self, engines: int) -> Room:
        """What may still be done while `engines` connections to engines are open.

        The limit is read each time: an operator may change it under a running process.
        """
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return room(self.count + engines + self._others, limit)

    def protocol(self, **given: Any) -> ClientProtocol:
        """A protocol for the server's next connection."""
        return ClientProtocol(self, **given)


class ClientProtocol(H11Protocol):
    """HTTP/1.1 by h11, with a limit on how long a client may take nothing."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.count += 1
        self._all.open.set(self._all.count)
        sock = transport.get_extra_info("socket")
        if sock is None:
            return
        # A reader that stops would otherwise be sent megabytes before anybody notices.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The end of an answer fits the buffer, and would wait for its reader for ever. Twice
            # the timeout: where the buffer is full, ours comes first and is counted.
            limit = max(1, int(self._all.write_timeout_s * 2000))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.count -= 1
        self._all.open.set(self._all.count)
        self._cancel()

    def pause_writing(self) -> None:
        """The client's buffer is full."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self._all.write_timeout_s, self._give_up)

    def resume_writing(self) -> None:
        """The client's buffer has room again."""
        super().resume_writing()
        self._cancel()

    def _give_up(self) -> None:
        self._stuck = None
        self._all.slow.inc()
        self.transport.abort()

    def _cancel(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
