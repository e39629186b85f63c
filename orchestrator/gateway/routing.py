"""Which engine serves a request, and when: leases, and the queue before them.

A lease waits, chooses and counts in one step: between choosing a replica and counting the request
nothing is awaited. Waiting is fair between API keys, and bounded in number, tokens and time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from engine_launchers.base import CrashCause
from orchestrator.control import ON_DEMAND, ModelRoute, Replica, RouteTable, Wish
from orchestrator.errors import (
    DeadlineExceeded,
    Draining,
    ModelUnavailable,
    UnknownModel,
)
from orchestrator.gateway.admission import make_room, trim
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.board import Board
from orchestrator.gateway.books import Books, OwnBooks
from orchestrator.gateway.fairness import Entry, FairQueue
from orchestrator.gateway.outliers import Key
from orchestrator.gateway.places import (
    Lease,
    Line,
    Slot,
    Target,
    Waiter,
    entry_of,
    key_of,
)
from orchestrator.gateway.turns import serve

_BROKEN_S = 1.0  # how long a replica rests that broke under a request, unless a new table says more
_EWMA = 0.2


class Router(Board):
    """Holds the last route table; it goes on serving from it while no supervisor is there."""

    def __init__(
        self,
        max_queue: int,
        queue_timeout_s: float,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        on_lost: Callable[[Key, CrashCause | None], None] = lambda key, cause: None,
        max_queue_tokens: int = 1 << 30,
        books: Books | None = None,
        on_vain: Callable[[str, float], None] = lambda model, seconds: None,
    ) -> None:
        super().__init__(books or OwnBooks(), clock)
        self._max_queue, self._timeout = max_queue, queue_timeout_s
        self._max_tokens = max_queue_tokens
        self._draw = random.Random().randrange  # noqa: S311 - lots, not secrets
        self.on_change, self._on_lost, self._on_vain = on_change, on_lost, on_vain

    def apply(self, table: RouteTable) -> None:
        """Take a new table; requests in flight keep their place, waiters are served or refused."""
        with self._books:
            self._apply(table)
        self.on_change()

    def _apply(self, table: RouteTable) -> None:
        self.version, self.draining, self.known = table.version, table.draining, True
        lines: dict[str, Line] = {}
        for route in table.models:
            line = self._lines.pop(route.name, None) or self._line(route)
            line.route = route
            old = line.slots
            line.slots = {}
            for replica in route.replicas:
                key = (replica.id, replica.generation)
                slot = old.pop(key, None) or self._slot(replica)
                slot.become(replica)
                if replica.vouched:
                    slot.rests_until = 0.0
                line.slots[key] = slot
            for key, slot in old.items():
                if slot.accepting:  # else it was drained first
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
            line.queue.show()
        for line in lines.values():
            self._serve(line)
            if (error := self._unavailable(line)) is not None:
                line.refuse(error)
            line.queue.show()

    def _line(self, route: ModelRoute) -> Line:
        return Line(route, queue=FairQueue(self._books.crowd(route.name)))

    def _slot(self, replica: Replica) -> Slot:
        return Slot(replica, self._books.count("replica", replica.id, str(replica.generation)))

    def keep(self, name: str, seconds: float | None) -> None:
        """A client said how long it wants the model kept; None says nothing."""
        if seconds is not None:
            self.keep_alive[name] = Wish(seconds=seconds, at=self._clock())
            self.on_change()

    # --- leasing --------------------------------------------------------------------------------

    async def take(
        self, ask: Ask | str, again: bool = False, avoid: Replica | None = None
    ) -> Lease:
        """Wait for a place; `release` gives it back, once. A model's name asks for nothing special.

        `again`: this request had a place and lost it through no fault of its own; it goes to the
        head of the queue and no bound refuses it. It is not given to `avoid` where the model has
        another replica. Raises QueueFull, ModelUnavailable, DeadlineExceeded, Draining or
        UnknownModel.
        """
        began = self._clock()
        ask, line = self._asked(ask)
        slot = await self._take(line, ask, again, key_of(avoid) if avoid else None)
        return self._granted(line, slot, ask, began)

    def take_now(
        self, ask: Ask | str, again: bool = False, avoid: Replica | None = None
    ) -> Lease | None:
        """The same without waiting; None where one has to. Raises as `take` does."""
        ask, line = self._asked(ask)
        if (error := self._unavailable(line)) is not None:
            raise error
        now = self._clock()
        with self._books:
            if line.queue.busy and not again:
                return None
            slot = line.choose(ask, key_of(avoid) if avoid else None, now)
        return None if slot is None else self._granted(line, slot, ask, now)

    def release(self, lease: Lease) -> None:
        """Free the place of a lease, and hand it to who is next."""
        line, ask, now = lease.line, lease.ask, self._clock()
        with self._books:
            lease.slot.count.own -= 1
            line.service_s += _EWMA * (now - lease.granted - line.service_s)
            line.pace.completed(now, len(line.queue) if line.queue else 0)
            if line.queue.busy:
                if lease.tokens is not None:  # else there is nobody to settle with
                    line.queue.settle(ask.key, ask.priority, ask.cost - lease.tokens)
                self._serve(line)
        self.on_change()

    def _asked(self, ask: Ask | str) -> tuple[Ask, Line]:
        ask = Ask(ask) if isinstance(ask, str) else ask
        line = self._lines.get(ask.model)
        return ask, self._lines[self.find(ask.model).model] if line is None else line

    def _granted(self, line: Line, slot: Slot, ask: Ask, began: float) -> Lease:
        now = self._clock()
        self._served[line.route.name] += 1
        self.on_change()
        return Lease(line.route, slot.replica, now - began, line, slot, ask, now)

    def broke(self, key: Key) -> None:
        """Rest a replica that failed a request, until it is probed or for a moment."""
        for line in self._lines.values():
            slot = line.slots.get(key)
            if slot is not None:
                slot.rests_until = self._clock() + _BROKEN_S
                asyncio.get_running_loop().call_later(_BROKEN_S, self._wake, line)

    def failed(self, key: Key) -> float | None:
        """Count a failure; the seconds that it gets the replica ejected for, None where not."""
        for line in self._lines.values():
            if key in line.slots:
                among = [each for each, slot in line.slots.items() if slot.accepting]
                seconds = line.outliers.failed(key, among, self._clock())
                if seconds is not None:
                    asyncio.get_running_loop().call_later(seconds, self._wake, line)
                return seconds
        return None

    def succeeded(self, key: Key) -> bool:
        """A whole answer came from this replica; whether anything was held against it."""
        return any([line.outliers.succeeded(key) for line in self._lines.values()])

    def _wake(self, line: Line) -> None:
        """Serve who waited for a rest to end; timers may fire a little before our clock agrees."""
        now = self._clock()  # the same for both: else a rest may end unseen between them
        self._serve(line, now)
        self.on_change()
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
        entry = entry_of(Waiter(asyncio.get_running_loop().create_future(), ask, avoid), now)
        with self._books:
            if (again or not line.queue.busy) and (slot := line.choose(ask, avoid, now)):
                return slot
            if again or avoid is not None:
                line.queue.push_first(entry)
            else:
                make_room(line, entry, self._max_queue, self._max_tokens)
                line.queue.push(entry)
            self._serve(line)
        self.on_change()
        try:
            async with asyncio.timeout(min(patience, self._timeout)):
                return await entry.item.place
        except TimeoutError:
            self._abandon(line, entry)
            self._on_vain(name, self._clock() - now)
            why = line.route.why or line.route.state
            if patience < self._timeout:
                told = f"no engine of {name} was free within the request's {patience:.3g} s ({why})"
                raise DeadlineExceeded(told) from None
            raise ModelUnavailable(
                f"no engine of {name} was free within {self._timeout:g} s ({why})",
                retry_after=line.retry_after(),
            ) from None
        except asyncio.CancelledError:
            self._abandon(line, entry)
            self._on_vain(name, self._clock() - now)
            raise

    def _abandon(self, line: Line, entry: Entry[Waiter]) -> None:
        """Leave the queue; give a place back that was granted at the same moment."""
        place = entry.item.place
        with self._books:
            if entry.waits:
                line.queue.remove(entry)
            elif place.done() and not place.cancelled() and place.exception() is None:
                place.result().count.own -= 1
            self._serve(line)
        self.on_change()

    def _serve(self, line: Line, now: float | None = None) -> None:
        """Things changed: whoever waits, here or elsewhere, may find a place."""
        if self._lines.get(line.route.name) is not line:
            return  # it was taken away, and all that waited with it
        with self._books:
            line.queue.crowd.again()
            serve(line, self._clock() if now is None else now)

    def stir(self) -> None:
        """Another worker says that it may be this one's turn, or that too many wait here."""
        for line in self._lines.values():
            if line.queue:
                with self._books:
                    trim(line, self._max_queue, self._max_tokens)
                    serve(line, self._clock())

    def _unavailable(self, line: Line) -> Exception | None:
        """Why waiting would be in vain, None where it makes sense."""
        if self.draining:
            return Draining("the server is shutting down, or has not come back yet", retry_after=5)
        return line.unavailable()
