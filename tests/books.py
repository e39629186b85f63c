"""Several workers' books in one process: the memory is real, the wakes are calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.gateway.books import Books, OwnBooks
from orchestrator.gateway.workers.memory import Memory, make
from orchestrator.gateway.workers.shared import SharedBooks


class Desks:
    """`books` of each worker; `stir` is filled in with what each does when it is woken."""

    def __init__(self, memories: list[Memory]) -> None:
        self.memories = memories
        self.stir: list[Callable[[], None]] = []
        count = len(memories)
        self.books: list[Books] = [
            SharedBooks(memory, number, count, self._wake) for number, memory in enumerate(memories)
        ]

    def _wake(self, worker: int) -> None:
        asyncio.get_running_loop().call_soon(self.stir[worker])


class OneDesk(Desks):
    """The only worker of its gateway."""

    def __init__(self) -> None:
        super().__init__([])
        self.books = [OwnBooks()]


@contextmanager
def desks(workers: int) -> Iterator[Desks]:
    """Those of so many workers."""
    if workers == 1:
        yield OneDesk()
        return
    fd = make(workers)
    try:
        yield Desks([Memory(fd, number, workers) for number in range(workers)])
    finally:
        os.close(fd)
