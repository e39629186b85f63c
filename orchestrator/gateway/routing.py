"""Which engine serves a request, and when: leases, and the queue before them.

A lease waits, chooses and counts in one step: between choosing a replica and counting the request
nothing is awaited. Waiting is first come, first served, bounded in number and time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from engine_launchers.base import Served
from orchestrator.control import Dealings, ModelRoute, Replica, RouteTable
from orchestrator.errors import BadRequest, Draining, ModelUnavailable, QueueFull, UnknownModel

_BROKEN_S = 1.0  # how long a replica rests that broke under a request, unless a new table says more
_VOUCHED = "ready"  # in a new table this ends the rest; while it is suspect the rest goes on
_EWMA = 0.2


@dataclass
class Tally:
    """What this gateway has had with one generation of one replica."""

    owed: int = 0
    relayed: int = 0
    answered: int = 0

    @contextmanager
    def owing(self) -> Iterator[None]:
        """While the engine owes a word, and nobody else does."""
        self.owed += 1
        try:
            yield
        finally:
            self.owed -= 1


@dataclass
class _Slot:
    """One generation of one replica, as this gateway sees it."""

    replica: Replica
    in_flight: int = 0
    rests_until: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def can_take(self, now: float) -> bool:
        return (
            self.replica.accepting
            and self.in_flight < self.replica.max_concurrency
            and self.rests_until <= now
        )


@dataclass
class _Line:
    """One model: its route, its replicas, and who waits for them."""

    route: ModelRoute
    slots: dict[tuple[str, int], _Slot] = field(default_factory=dict)
    waiters: deque[asyncio.Future[_Slot]] = field(default_factory=deque)
    service_s: float = 1.0
    """Moving average of how long a lease is held, for Retry-After."""


@dataclass(frozen=True)
class Target:
    """What a name that a client gave stands for."""

    route: ModelRoute
    served: Served

    @property
    def call(self) -> dict[str, object]:
        """The body fields that make the engine take this very model or adapter."""
        return {**self.served.fields, "model": self.served.model}


@dataclass(frozen=True)
class Lease:
    """The right to send one request to `replica` of `route`."""

    route: ModelRoute
    replica: Replica
    waited_s: float
    tally: Tally


class Router:
    """Holds the last route table; it goes on serving from it while no supervisor is there."""

    def __init__(
        self,
        max_queue: int,
        queue_timeout_s: float,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_queue, self._timeout = max_queue, queue_timeout_s
        self._on_change, self._clock = on_change, clock
        self._lines: dict[str, _Line] = {}
        self._names: dict[str, Target] = {}
        self.version = 0
        self.draining = False
        self.known = False
        self.keep_alive: dict[str, float] = {}
        self._served: Counter[str] = Counter()

    def apply(self, table: RouteTable) -> None:
        """Take a new table; requests in flight keep their place, waiters are served or refused."""
        self.version, self.draining, self.known = table.version, table.draining, True
        lines: dict[str, _Line] = {}
        for route in table.models:
            line = self._lines.pop(route.name, None) or _Line(route)
            line.route = route
            old = line.slots
            line.slots = {}
            for replica in route.replicas:
                key = (replica.id, replica.generation)
                slot = old.pop(key, None) or _Slot(replica)
                slot.replica = replica
                if route.state == _VOUCHED:
                    slot.rests_until = 0.0
                line.slots[key] = slot
            lines[route.name] = line
        gone, self._lines = self._lines, lines
        self._names = {
            each.name: Target(route, each) for route in table.models for each in route.names
        }
        for line in gone.values():
            self._refuse(line, UnknownModel("this model is not served any more"))
        for line in lines.values():
            self._serve(line)
            if (error := self._unavailable(line)) is not None:
                self._refuse(line, error)
        self._on_change()

    # --- looking --------------------------------------------------------------------------------

    def routes(self) -> list[ModelRoute]:
        """Every model of the table."""
        return [line.route for line in self._lines.values()]

    def targets(self) -> list[Target]:
        """Every name that clients may give: models, aliases, adapters."""
        return list(self._names.values())

    def find(self, name: str | None) -> Target:
        """What `name` stands for; the only model where a client names none.

        Raises ModelUnavailable, BadRequest or UnknownModel.
        """
        if not self.known:
            raise ModelUnavailable("the gateway has no models yet", retry_after=1)
        if name is None:
            if len(self._lines) != 1:
                raise BadRequest("name a model: several are served, see /v1/models", param="model")
            name = next(iter(self._lines))
        if name not in self._names:
            raise UnknownModel("no model of that name is served, see /v1/models", param="model")
        return self._names[name]

    def ready(self, name: str) -> bool:
        """Whether a replica of the model takes requests, now or after others."""
        return any(slot.replica.accepting for slot in self._lines[name].slots.values())

    def in_flight(self) -> dict[str, int]:
        """Requests per replica id."""
        return {s.replica.id: s.in_flight for x in self._lines.values() for s in x.slots.values()}

    def dealings(self) -> dict[str, Dealings]:
        """What was had with each replica, by its id."""
        return {
            slot.replica.id: Dealings(
                generation=slot.replica.generation,
                owed=slot.tally.owed,
                relayed=slot.tally.relayed,
                answered=slot.tally.answered,
            )
            for line in self._lines.values()
            for slot in line.slots.values()
        }

    def model_load(self, name: str) -> tuple[int, int]:
        """Requests in flight and waiting of one model."""
        line = self._lines[name]
        return sum(slot.in_flight for slot in line.slots.values()), len(line.waiters)

    def waiting(self) -> dict[str, int]:
        """Requests in the queue per model."""
        return {name: len(line.waiters) for name, line in self._lines.items()}

    def served(self) -> dict[str, int]:
        """Leases given so far per model."""
        return {name: self._served[name] for name in self._lines}

    def keep(self, name: str, seconds: float | None) -> None:
        """A client said how long it wants the model kept; None says nothing."""
        if seconds is not None and self.keep_alive.get(name) != seconds:
            self.keep_alive[name] = seconds
            self._on_change()

    # --- leasing --------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(self, name: str, again: bool = False) -> AsyncIterator[Lease]:
        """Wait for a place, hold it, give it back.

        `again`: this request had a place and lost it through no fault of its own; it goes to the
        head of the queue and no bound refuses it. Raises QueueFull, ModelUnavailable, Draining or
        UnknownModel.
        """
        began = self._clock()
        line = self._lines[self.find(name).route.name]
        slot = await self._take(line, again)
        granted = self._clock()
        self._served[line.route.name] += 1
        self._on_change()
        try:
            yield Lease(line.route, slot.replica, granted - began, slot.tally)
        finally:
            slot.in_flight -= 1
            line.service_s += _EWMA * (self._clock() - granted - line.service_s)
            self._serve(line)
            self._on_change()

    def broke(self, replica: Replica) -> None:
        """Rest a replica that failed a request, until it is probed or for a moment."""
        for line in self._lines.values():
            slot = line.slots.get((replica.id, replica.generation))
            if slot is not None:
                slot.rests_until = self._clock() + _BROKEN_S
                asyncio.get_running_loop().call_later(_BROKEN_S, self._wake, line)

    def _wake(self, line: _Line) -> None:
        """Serve who waited for a rest to end; timers may fire a little before our clock agrees."""
        self._serve(line)
        now = self._clock()
        rests = [s.rests_until - now for s in line.slots.values() if s.rests_until > now]
        if line.waiters and rests:
            asyncio.get_running_loop().call_later(max(0.001, min(rests)), self._wake, line)

    async def _take(self, line: _Line, again: bool) -> _Slot:
        name = line.route.name
        if (error := self._unavailable(line)) is not None:
            raise error
        if (again or not line.waiters) and (slot := self._choose(line)) is not None:
            return slot
        if len(line.waiters) >= self._max_queue and not again:
            raise QueueFull(
                f"{len(line.waiters)} requests wait for {name} already, which is the limit",
                retry_after=self._retry_after(line),
            )
        waiter: asyncio.Future[_Slot] = asyncio.get_running_loop().create_future()
        line.waiters.appendleft(waiter) if again else line.waiters.append(waiter)
        self._on_change()
        try:
            async with asyncio.timeout(self._timeout):
                return await waiter
        except TimeoutError:
            self._abandon(line, waiter)
            why = line.route.why or line.route.state
            raise ModelUnavailable(
                f"no engine of {name} was free within {self._timeout:g} s ({why})",
                retry_after=self._retry_after(line),
            ) from None
        except asyncio.CancelledError:
            self._abandon(line, waiter)
            raise

    def _abandon(self, line: _Line, waiter: asyncio.Future[_Slot]) -> None:
        """Leave the queue; give a place back that was granted at the same moment."""
        if waiter in line.waiters:
            line.waiters.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            waiter.result().in_flight -= 1
        self._serve(line)
        self._on_change()

    def _choose(self, line: _Line) -> _Slot | None:
        """Least in flight among those that can take one more; it is counted at once."""
        now = self._clock()
        free = [slot for slot in line.slots.values() if slot.can_take(now)]
        if not free:
            return None
        slot = min(free, key=lambda slot: slot.in_flight)
        slot.in_flight += 1
        return slot

    def _serve(self, line: _Line) -> None:
        while line.waiters:
            if line.waiters[0].done():  # cancelled, and about to leave by itself
                line.waiters.popleft()
                continue
            slot = self._choose(line)
            if slot is None:
                return
            line.waiters.popleft().set_result(slot)

    def _refuse(self, line: _Line, error: Exception) -> None:
        while line.waiters:
            waiter = line.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _unavailable(self, line: _Line) -> Exception | None:
        """Why waiting would be in vain, None where it makes sense."""
        if self.draining:
            return Draining("the server is shutting down", retry_after=5)
        route = line.route
        if not route.expected and not any(s.replica.accepting for s in line.slots.values()):
            return ModelUnavailable(f"{route.name} is {route.state}: {route.why}", retry_after=10)
        return None

    def _retry_after(self, line: _Line) -> float:
        """Seconds until the queue of now should be served, between 1 and 60."""
        places = sum(slot.replica.max_concurrency for slot in line.slots.values()) or 1
        return min(60.0, max(1.0, line.service_s * len(line.waiters) / places))
