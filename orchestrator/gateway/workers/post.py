"""Short messages between the workers of one gateway: it may be your turn, this replica failed."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

_WAKE = b"w"
_LONGEST = 4096
_log = logging.getLogger("engineroom.gateway")


class Post:
    """One mailbox per worker. What a full one cannot take is lost; its owner is woken anyway, by
    what is in it."""

    def __init__(self, ends: Sequence[socket.socket], own: socket.socket, worker: int) -> None:
        self._ends, self._own, self._worker = tuple(ends), own, worker
        self._deaf: set[int] = set()
        for each in (*self._ends, own):
            each.setblocking(False)

    def open(self, on_wake: Callable[[], None], on_message: Callable[[bytes], None]) -> None:
        """Read what comes, from now on, in the running loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._own.fileno(), self._read, on_wake, on_message)

    def close(self) -> None:
        """Read no more."""
        asyncio.get_running_loop().remove_reader(self._own.fileno())

    def wake(self, worker: int) -> None:
        """Have a worker look at its queues."""
        self._send(worker, _WAKE)

    def tell(self, message: bytes) -> None:
        """Send a message to every other worker."""
        for worker in range(len(self._ends)):
            if worker != self._worker:
                self._send(worker, message)

    def _send(self, worker: int, message: bytes) -> None:
        try:
            self._ends[worker].send(message)
        except OSError:  # it is full, which systems say in different ways
            if message != _WAKE and worker not in self._deaf:
                self._deaf.add(worker)
                _log.warning("worker %d does not read its messages", worker)
        else:
            self._deaf.discard(worker)

    def _read(self, on_wake: Callable[[], None], on_message: Callable[[bytes], None]) -> None:
        try:
            while True:
                message = self._own.recv(_LONGEST)
                if message != _WAKE:
                    on_message(message)
        except BlockingIOError:
            pass  # that was all
        finally:
            on_wake()
