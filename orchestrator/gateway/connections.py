"""Clients' connections below HTTP: counted, bounded in time, closed when they take nothing.

A client that reads slower than its answer is written holds the engine back, and after
`write_timeout_s` without room in its buffer its connection is reset; others notice nothing. Memory
per connection stays at the buffer's high-water mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from typing import Protocol

from prometheus_client import Counter, Gauge

from orchestrator.gateway.crowd import Room, bound, room
from orchestrator.observability.metrics import GatewayMetrics

_LIMIT_S = 0.1  # how long a descriptor limit that was read is believed


class Client(Protocol):
    """One connection."""

    def sweep(self, now: float) -> None:
        """Close it where it is silent for too long; `now` is the loop's clock."""

    def close(self) -> None:
        """Close it when all is written."""


class Connections:
    """All open client connections of this process."""

    def __init__(self, metrics: GatewayMetrics, write_timeout_s: float) -> None:
        self.write_timeout_s = write_timeout_s
        self._open: Gauge = metrics.connections
        self.slow: Counter = metrics.slow_clients
        self.all: set[Client] = set()
        self._others = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 32
        self._bound = 0.0
        self._limit_until = 0.0
        self._emptied: asyncio.Event | None = None
        self._common: tuple[object, bytes] = (None, b"")

    def room(self, engines: int) -> Room:
        """What may still be done while `engines` connections to engines are open.

        The limit is read again and again: an operator may change it under a running process.
        """
        now = time.monotonic()
        if now >= self._limit_until:
            self._bound = bound(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            self._limit_until = now + _LIMIT_S
        return room(len(self.all) + engines + self._others, self._bound)

    def came(self, client: Client) -> None:
        """A connection was accepted."""
        self.all.add(client)
        self._open.set(len(self.all))

    def went(self, client: Client) -> None:
        """A connection is gone."""
        self.all.discard(client)
        self._open.set(len(self.all))
        if self._emptied is not None and not self.all:
            self._emptied.set()

    async def wait_empty(self, seconds: float) -> None:
        """Wait until the last connection is gone, and no longer than that."""
        self._emptied = asyncio.Event()
        if self.all:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), seconds)

    def sweep(self) -> None:
        """Have each look at its clock."""
        now = asyncio.get_running_loop().time()
        for each in list(self.all):
            each.sweep(now)

    def common_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The server's own header lines; the list is a new one every second."""
        if self._common[0] is not headers:
            lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
            self._common = (headers, lines)
        return self._common[1]
