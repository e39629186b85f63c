"""A worker and the others of its gateway: the books they share, and what they tell each other."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.errors import GatewayBusy
from orchestrator.gateway.books import Books, OwnBooks
from orchestrator.gateway.workers.crew import Crew
from orchestrator.gateway.workers.line import Line, Unanswered
from orchestrator.gateway.workers.memory import Memory, make
from orchestrator.gateway.workers.post import Post, mailboxes
from orchestrator.gateway.workers.seat import Seat
from orchestrator.gateway.workers.shared import SharedBooks

_ANSWER_S = 3.0


@dataclass(frozen=True)
class Ears:
    """What a worker does about the others: `stir`, it may be its turn, here or for more; `hear`
    what one says. `metrics` are its own, of which `alike` are those that all see alike."""

    stir: Callable[[], None]
    hear: Callable[[bytes], None]
    metrics: Callable[[], str]
    alike: Collection[str]


class Team(Protocol):
    """See the module."""

    @property
    def books(self) -> Books:
        """What all go by."""

    def start(self, ears: Ears) -> None:
        """From now on, in the running loop."""

    def tell(self, message: bytes) -> None:
        """Tell all others."""

    def beat(self) -> None:
        """Once a second: this worker gets on."""

    async def metrics(self) -> str:
        """Those of the whole gateway. Raises GatewayBusy."""

    def end(self) -> None:
        """The gateway was told to end. May be called from a signal handler."""

    async def ended(self) -> None:
        """Wait for the others that this one looks after."""


@dataclass
class Alone:
    """A gateway with one worker."""

    books: Books = field(default_factory=OwnBooks)

    def start(self, ears: Ears) -> None:
        self._ears = ears

    def tell(self, message: bytes) -> None:
        """Nobody listens."""

    def beat(self) -> None:
        """Nobody looks."""

    async def metrics(self) -> str:
        return self._ears.metrics()

    def end(self) -> None:
        """There is nobody else to end."""

    async def ended(self) -> None:
        """Nobody to wait for."""


class Several:
    """One worker of several. The first, which has no line, looks after the others."""

    def __init__(self, seat: Seat, config: str) -> None:
        self._seat = seat
        self._memory = Memory(seat.memory, seat.worker, seat.workers)
        ends = [socket.socket(fileno=each) for each in seat.ends]
        box = socket.socket(fileno=seat.boxes[seat.worker])
        self._post = Post(ends, box, seat.worker)
        self.books: Books = SharedBooks(self._memory, seat.worker, seat.workers, self._post.wake)
        self._crew = None if seat.line is not None else Crew(seat, config, self._memory)
        self._listening: asyncio.Task[None] | None = None

    def start(self, ears: Ears) -> None:
        self._ears = ears
        self._post.open(ears.stir, ears.hear)
        self._memory.beat()
        if self._crew is not None:
            self._crew.start(self.metrics, self._lost)
        elif self._seat.line is not None:
            self._line = Line(socket.socket(fileno=self._seat.line), self._own)
            self._listening = asyncio.create_task(self._listen())

    def tell(self, message: bytes) -> None:
        self._post.tell(message)

    def beat(self) -> None:
        self._memory.beat()
        self._ears.stir()

    async def metrics(self) -> str:
        if self._crew is not None:
            return await self._crew.totals(self._ears.metrics(), self._ears.alike)
        try:
            return await self._line.ask(_ANSWER_S)
        except Unanswered:
            told = "the gateway's first worker, which adds the metrics up, does not answer"
            raise GatewayBusy(told) from None

    def end(self) -> None:
        if self._crew is not None:
            self._crew.end()

    async def ended(self) -> None:
        if self._crew is not None:
            await self._crew.ended()
        self._post.close()

    async def _own(self) -> str:
        return self._ears.metrics()

    async def _listen(self) -> None:
        """Without the first worker there is no gateway."""
        await self._line.run()
        os.kill(os.getpid(), signal.SIGTERM)

    def _lost(self) -> None:
        """What a dead worker held is free: somebody may have waited for it."""
        for worker in range(self._seat.workers):
            self._post.wake(worker)


def first_seat(listeners: Sequence[socket.socket]) -> Seat:
    """The seat of the first of several workers, with all that they will share.

    Each has a listener, which stays open here: who connects while a worker is replaced waits for
    the next. The descriptors are the process's to keep.
    """
    workers = len(listeners)
    ends, boxes = mailboxes(workers)
    return Seat(
        worker=0,
        workers=workers,
        memory=make(workers),
        listeners=tuple(each.detach() for each in listeners),
        ends=tuple(each.detach() for each in ends),
        boxes=tuple(each.detach() for each in boxes),
    )
