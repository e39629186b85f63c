"""Which engine serves a request, and when: leases, and the queue before them.

A lease waits, chooses and counts in one step: between choosing a replica and counting the request
nothing is awaited. Waiting is fair between API keys, and bounded in number, tokens and time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from engine_launchers.base import CrashCause
from orchestrator.control import ON_DEMAND, Dealings, ModelRoute, Replica, RouteTable
from orchestrator.errors import (
    BadRequest,
    DeadlineExceeded,
    Draining,
    ModelUnavailable,
    UnknownModel,
)
from orchestrator.gateway.admission import make_room
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.fairness import Entry
from orchestrator.gateway.outliers import Key
from orchestrator.gateway.places import (
    Lease,
    Line,
    Slot,
    Target,
    Waiter,
    entry_of,
    key_of,
    unknown_model,
)

_BROKEN_S = 1.0  # how long a replica rests that broke under a request, unless a new table says more
_EWMA = 0.2


class Router:
    """Holds the last route table; it goes on serving from it while no supervisor is there."""

    def __init__(
        self,
        max_queue: int,
        queue_timeout_s: float,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        on_lost: Callable[[Key, CrashCause | None], None] = lambda key, cause: None,
        max_queue_tokens: int = 1 << 30,
    ) -> None:
        self._max_queue, self._timeout = max_queue, queue_timeout_s
        self._max_tokens = max_queue_tokens
        self._draw = random.Random().randrange  # noqa: S311 - lots, not secrets
        self._on_change, self._clock, self._on_lost = on_change, clock, on_lost
        self._lines: dict[str, Line] = {}
        self._names: dict[str, Target] = {}
        self.version = 0
        self.draining = False
        self.known = False
        self.keep_alive: dict[str, float] = {}
        self._served: Counter[str] = Counter()

    def apply(self, table: RouteTable) -> None:
        """Take a new table; requests in flight keep their place, waiters are served or refused."""
        self.version, self.draining, self.known = table.version, table.draining, True
        lines: dict[str, Line] = {}
        for route in table.models:
            line = self._lines.pop(route.name, None) or Line(route)
            line.route = route
            old = line.slots
            line.slots = {}
            for replica in route.replicas:
                key = (replica.id, replica.generation)
                slot = old.pop(key, None) or Slot(replica)
                slot.replica = replica
                if replica.vouched:
                    slot.rests_until = 0.0
                line.slots[key] = slot
            for key, slot in old.items():
                if slot.replica.accepting:  # else it was drained first
                    self._on_lost(key, route.lost.get(key[0]))
            line.outliers.keep(line.slots)
            line.arrange(self._draw)
            if route.state in ON_DEMAND:
                self.keep_alive.pop(route.name, None)  # the wish was for the load that is over
            lines[route.name] = line
        gone, self._lines = self._lines, lines
        self._names = {
            each.name: Target(route, each) for route in table.models for each in route.names
        }
        for line in gone.values():
            line.refuse(UnknownModel("this model is not served any more"))
        for line in lines.values():
            self._serve(line)
            if (error := self._unavailable(line)) is not None:
                line.refuse(error)
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
            raise unknown_model()
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
                solo_tokens=slot.tally.solo.tokens,
                solo_s=slot.tally.solo.seconds,
            )
            for line in self._lines.values()
            for slot in line.slots.values()
        }

    def model_load(self, name: str) -> tuple[int, int]:
        """Requests in flight and waiting of one model."""
        line = self._lines[name]
        return sum(slot.in_flight for slot in line.slots.values()), len(line.queue)

    def waiting(self) -> dict[str, int]:
        """Requests in the queue per model."""
        return {name: len(line.queue) for name, line in self._lines.items()}

    def served(self) -> dict[str, int]:
        """Leases given so far per model."""
        return {name: self._served[name] for name in self._lines}

    def keep(self, name: str, seconds: float | None) -> None:
        """A client said how long it wants the model kept; None says nothing."""
        if seconds is not None and self.keep_alive.get(name) != seconds:
            self.keep_alive[name] = seconds
            self._on_change()

    def ejected(self, name: str) -> int:
        """How many replicas of the model are left out because requests failed on them."""
        return self._lines[name].outliers.out(self._clock())

    def has_other(self, name: str, replica: Replica) -> bool:
        """Whether a replica of the model other than `replica` takes requests."""
        line = self._lines.get(name)
        if line is None:
            return False
        barred = line.barred(key_of(replica), self._clock())
        others = line.slots.keys() - barred - {key_of(replica)}
        return any(line.slots[key].replica.accepting for key in others)

    # --- leasing --------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self, ask: Ask | str, again: bool = False, avoid: Replica | None = None
    ) -> AsyncIterator[Lease]:
        """Wait for a place, hold it, give it back. A model's name asks for nothing special.

        `again`: this request had a place and lost it through no fault of its own; it goes to the
        head of the queue and no bound refuses it. It is not given to `avoid` where the model has
        another replica. Raises QueueFull, ModelUnavailable, DeadlineExceeded, Draining or
        UnknownModel.
        """
        lease = await self.take(ask, again, avoid)
        try:
            yield lease
        finally:
            self.release(lease)

    async def take(
        self, ask: Ask | str, again: bool = False, avoid: Replica | None = None
    ) -> Lease:
        """Wait for a place; `release` gives it back, once. Raises as `lease` does."""
        began = self._clock()
        ask, line = self._asked(ask)
        slot = await self._take(line, ask, again, key_of(avoid) if avoid else None)
        return self._granted(line, slot, ask, began)

    def take_now(
        self, ask: Ask | str, again: bool = False, avoid: Replica | None = None
    ) -> Lease | None:
        """The same without waiting; None where one has to. Raises as `lease` does."""
        ask, line = self._asked(ask)
        if (error := self._unavailable(line)) is not None:
            raise error
        if line.queue and not again:
            return None
        now = self._clock()
        slot = line.choose(ask, key_of(avoid) if avoid else None, now)
        return None if slot is None else self._granted(line, slot, ask, now)

    def release(self, lease: Lease) -> None:
        """Free the place of a lease, and hand it to who is next."""
        line, ask, now = lease.line, lease.ask, self._clock()
        lease.slot.in_flight -= 1
        line.service_s += _EWMA * (now - lease.granted - line.service_s)
        line.pace.completed(now, waiting := len(line.queue) if line.queue else 0)
        if waiting and lease.tokens is not None:  # else there is nobody to settle with
            line.queue.settle(ask.key, ask.priority, ask.cost - lease.tokens)
        if waiting:
            self._serve(line)
        self._on_change()

    def _asked(self, ask: Ask | str) -> tuple[Ask, Line]:
        ask = Ask(ask) if isinstance(ask, str) else ask
        return ask, self._lines[self.find(ask.model).route.name]

    def _granted(self, line: Line, slot: Slot, ask: Ask, began: float) -> Lease:
        now = self._clock()
        self._served[line.route.name] += 1
        self._on_change()
        return Lease(line.route, slot.replica, now - began, line, slot, ask, now)

    def broke(self, replica: Replica) -> None:
        """Rest a replica that failed a request, until it is probed or for a moment."""
        for line in self._lines.values():
            slot = line.slots.get(key_of(replica))
            if slot is not None:
                slot.rests_until = self._clock() + _BROKEN_S
                asyncio.get_running_loop().call_later(_BROKEN_S, self._wake, line)

    def failed(self, replica: Replica) -> float | None:
        """Count a failure; the seconds that it gets the replica ejected for, None where not."""
        for line in self._lines.values():
            if key_of(replica) in line.slots:
                among = [key for key, slot in line.slots.items() if slot.replica.accepting]
                seconds = line.outliers.failed(key_of(replica), among, self._clock())
                if seconds is not None:
                    asyncio.get_running_loop().call_later(seconds, self._wake, line)
                return seconds
        return None

    def succeeded(self, replica: Replica) -> None:
        """A whole answer came from this replica."""
        for line in self._lines.values():
            line.outliers.succeeded(key_of(replica))

    def _wake(self, line: Line) -> None:
        """Serve who waited for a rest to end; timers may fire a little before our clock agrees."""
        self._serve(line)
        self._on_change()
        now = self._clock()
        rests = [s.rests_until - now for s in line.slots.values() if s.rests_until > now]
        if line.queue and rests:
            asyncio.get_running_loop().call_later(max(0.001, min(rests)), self._wake, line)

    async def _take(self, line: Line, ask: Ask, again: bool, avoid: Key | None) -> Slot:
        name, now = line.route.name, self._clock()
        if (error := self._unavailable(line)) is not None:
            raise error
        patience = self._timeout if ask.deadline is None else ask.deadline - now
        if patience <= 0:
            raise DeadlineExceeded("the request's own timeout was over before it could begin")
        if (again or not line.queue) and (slot := line.choose(ask, avoid, now)) is not None:
            return slot
        waiter = Waiter(asyncio.get_running_loop().create_future(), ask, avoid)
        entry = entry_of(waiter, now)
        if again or avoid is not None:
            line.queue.push_first(entry)
        else:
            make_room(line, entry, self._max_queue, self._max_tokens)
            line.queue.push(entry)
        self._on_change()
        try:
            async with asyncio.timeout(min(patience, self._timeout)):
                return await waiter.place
        except TimeoutError:
            self._abandon(line, entry)
            if patience < self._timeout:
                told = f"no engine of {name} was free within the {patience:g} s of the request"
                raise DeadlineExceeded(told) from None
            why = line.route.why or line.route.state
            raise ModelUnavailable(
                f"no engine of {name} was free within {self._timeout:g} s ({why})",
                retry_after=line.retry_after(),
            ) from None
        except asyncio.CancelledError:
            self._abandon(line, entry)
            raise

    def _abandon(self, line: Line, entry: Entry[Waiter]) -> None:
        """Leave the queue; give a place back that was granted at the same moment."""
        place = entry.item.place
        if entry.waits:
            line.queue.remove(entry)
        elif place.done() and not place.cancelled() and place.exception() is None:
            place.result().in_flight -= 1
        self._serve(line)
        self._on_change()

    def _serve(self, line: Line) -> None:
        """Give free places to those whose turn it is; who avoids a place is passed over."""
        queue, now = line.queue, self._clock()
        for entry in queue.first():
            if not self._let_in(line, entry, now) and entry.item.avoid is None:
                return
        while (turn := queue.next()) is not None and self._let_in(line, turn, now):
            pass

    def _let_in(self, line: Line, entry: Entry[Waiter], now: float) -> bool:
        """Whether the request got a place, or has given up and is about to leave by itself."""
        waiter = entry.item
        if waiter.place.done():
            line.queue.remove(entry)
            return True
        slot = line.choose(waiter.ask, waiter.avoid, now)
        if slot is None:
            return False
        line.queue.serve(entry)
        waiter.place.set_result(slot)
        return True

    def _unavailable(self, line: Line) -> Exception | None:
        """Why waiting would be in vain, None where it makes sense."""
        if self.draining:
            return Draining("the server is shutting down", retry_after=5)
        return line.unavailable()
