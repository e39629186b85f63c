"""A worker and the others of its gateway: the books they share, and what they tell each other."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.errors import GatewayBusy
from orchestrator.gateway.books import Books, OwnBooks
from orchestrator.gateway.workers.crew import Crew
from orchestrator.gateway.workers.line import Line, Unanswered
from orchestrator.gateway.workers.memory import Memory
from orchestrator.gateway.workers.post import Post
from orchestrator.gateway.workers.seat import Seat
from orchestrator.gateway.workers.shared import SharedBooks
from orchestrator.gateway.workers.shop import Shop

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
    """One worker of several, by what they share."""

    def __init__(
        self, memory: Memory, post: Post, worker: int, workers: int, others: Others
    ) -> None:
        self._memory, self._post, self._others = memory, post, others
        self.books: Books = SharedBooks(memory, worker, workers, post.wake)

    def start(self, ears: Ears) -> None:
        self._ears = ears
        self._post.open(ears.stir, ears.hear)
        self._memory.beat()
        self._others.start(ears)

    def tell(self, message: bytes) -> None:
        self._post.tell(message)

    def beat(self) -> None:
        self._memory.beat()
        self._ears.stir()

    async def metrics(self) -> str:
        return await self._others.metrics()

    def end(self) -> None:
        self._others.end()

    async def ended(self) -> None:
        await self._others.ended()
        self._post.close()


class Others(Protocol):
    """A worker's ties to the others beside the books: those of the first, and of all but it."""

    def start(self, ears: Ears) -> None:
        """From now on, in the running loop."""

    async def metrics(self) -> str:
        """Those of all together. Raises GatewayBusy."""

    def end(self) -> None:
        """The gateway was told to end."""

    async def ended(self) -> None:
        """Wait for those that it looks after."""


class First:
    """Of the first: it looks after the crew."""

    def __init__(self, shop: Shop, config: str, memory: Memory, post: Post, end_s: float) -> None:
        self._crew, self._workers = Crew(shop, config, memory, end_s), shop.workers
        self._post = post

    def start(self, ears: Ears) -> None:
        self._ears = ears
        self._crew.start(self.metrics, self._lost)

    async def metrics(self) -> str:
        return await self._crew.totals(self._ears.metrics(), self._ears.alike)

    def end(self) -> None:
        self._crew.end()

    async def ended(self) -> None:
        await self._crew.ended()

    def _lost(self) -> None:
        """What a dead worker held is free: somebody may have waited for it."""
        for worker in range(self._workers):
            self._post.wake(worker)


class Mate:
    """Of all but the first: a stream to it, without which there is no gateway."""

    def __init__(self, line: int) -> None:
        self._line = Line(socket.socket(fileno=line), self._own)

    def start(self, ears: Ears) -> None:
        self._ears = ears
        self._listening = asyncio.create_task(self._listen())

    async def metrics(self) -> str:
        try:
            return await self._line.ask(_ANSWER_S)
        except Unanswered:
            told = "the gateway's first worker, which adds the metrics up, does not answer"
            raise GatewayBusy(told) from None

    def end(self) -> None:
        """The first one is told too."""

    async def ended(self) -> None:
        """It looks after nobody."""

    async def _own(self) -> str:
        return self._ears.metrics()

    async def _listen(self) -> None:
        try:
            await self._line.run()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def leading(shop: Shop, config: str, end_s: float) -> Several:
    """The team as the first worker has it. `config` is the path of the gateway's config, or of a
    descriptor of this process; answers under way have `end_s` at the end."""
    memory = Memory(shop.memory, 0, shop.workers)
    post = Post(shop.ends, shop.boxes[0], 0)
    return Several(memory, post, 0, shop.workers, First(shop, config, memory, post, end_s))


def joining(seat: Seat) -> Several:
    """The team as another worker has it."""
    memory = Memory(seat.memory, seat.worker, seat.workers)
    ends = [socket.socket(fileno=each) for each in seat.ends]
    post = Post(ends, socket.socket(fileno=seat.box), seat.worker)
    return Several(memory, post, seat.worker, seat.workers, Mate(seat.line))
