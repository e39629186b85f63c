"""Which engine serves a request, and when: leases, and the queue before them.

A lease waits, chooses and counts in one step: between choosing a replica and counting the request
nothing is awaited. Waiting is first come, first served, bounded in number and time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from engine_launchers.base import CrashCause
from orchestrator.control import ON_DEMAND, Dealings, ModelRoute, Replica, RouteTable
from orchestrator.errors import BadRequest, Draining, ModelUnavailable, QueueFull, UnknownModel
from orchestrator.gateway.outliers import Key
from orchestrator.gateway.places import Lease, Line, Slot, Target, Waiter, key_of

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
    ) -> None:
        self._max_queue, self._timeout = max_queue, queue_timeout_s
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
            if route.state in ON_DEMAND:
                self.keep_alive.pop(route.name, None)  # the wish was for the load that is over
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
                solo_tokens=slot.tally.solo.tokens,
                solo_s=slot.tally.solo.seconds,
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

    def ejected(self, name: str) -> int:
        """How many replicas of the model are left out because requests failed on them."""
        return self._lines[name].outliers.out(self._clock())

    def has_other(self, name: str, replica: Replica) -> bool:
        """Whether a replica of the model other than `replica` takes requests."""
        line = self._lines.get(name)
        return line is not None and bool(self._open(line, key_of(replica)))

    # --- leasing --------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self, name: str, again: bool = False, avoid: Replica | None = None
    ) -> AsyncIterator[Lease]:
        """Wait for a place, hold it, give it back.

        `again`: this request had a place and lost it through no fault of its own; it goes to the
        head of the queue and no bound refuses it. It is not given to `avoid` where the model has
        another replica. Raises QueueFull, ModelUnavailable, Draining or UnknownModel.
        """
        lease = await self.take(name, again, avoid)
        try:
            yield lease
        finally:
            self.release(lease)

    def take_now(
        self, name: str, again: bool = False, avoid: Replica | None = None
    ) -> Lease | None:
        """A place that is free at this moment; None where one has to wait. Raises as `lease` does.

        Whoever takes one gives it back by `release`.
        """
        line = self._lines[self.find(name).route.name]
        if (error := self._unavailable(line)) is not None:
            raise error
        if line.waiters and not again:
            return None
        slot = self._choose(line, key_of(avoid) if avoid else None)
        return None if slot is None else self._lease(line, slot, self._clock())

    async def take(self, name: str, again: bool = False, avoid: Replica | None = None) -> Lease:
        """Wait for a place; `release` gives it back. Raises as `lease` does."""
        began = self._clock()
        line = self._lines[self.find(name).route.name]
        slot = await self._take(line, again, key_of(avoid) if avoid else None)
        return self._lease(line, slot, began)

    def release(self, lease: Lease) -> None:
        """Give a place back."""
        line = lease.line
        lease.slot.in_flight -= 1
        line.service_s += _EWMA * (self._clock() - lease.granted - line.service_s)
        if line.waiters:
            self._serve(line)
        self._on_change()

    def _lease(self, line: Line, slot: Slot, began: float) -> Lease:
        granted = self._clock()
        self._served[line.route.name] += 1
        self._on_change()
        return Lease(line.route, slot.replica, granted - began, slot.tally, slot, line, granted)

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
        if line.waiters and rests:
            asyncio.get_running_loop().call_later(max(0.001, min(rests)), self._wake, line)

    async def _take(self, line: Line, again: bool, avoid: Key | None) -> Slot:
        name = line.route.name
        if (error := self._unavailable(line)) is not None:
            raise error
        if (again or not line.waiters) and (slot := self._choose(line, avoid)) is not None:
            return slot
        if len(line.waiters) >= self._max_queue and not again:
            raise QueueFull(
                f"{len(line.waiters)} requests wait for {name} already, which is the limit",
                retry_after=self._retry_after(line),
            )
        waiter = Waiter(asyncio.get_running_loop().create_future(), avoid)
        line.waiters.appendleft(waiter) if again else line.waiters.append(waiter)
        self._on_change()
        try:
            async with asyncio.timeout(self._timeout):
                return await waiter.place
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

    def _abandon(self, line: Line, waiter: Waiter) -> None:
        """Leave the queue; give a place back that was granted at the same moment."""
        place = waiter.place
        if waiter in line.waiters:
            line.waiters.remove(waiter)
        elif place.done() and not place.cancelled() and place.exception() is None:
            place.result().in_flight -= 1
        self._serve(line)
        self._on_change()

    def _open(self, line: Line, avoid: Key | None) -> list[Slot]:
        """The replicas that take requests and are not left out; never `avoid`."""
        open_ = {key: slot for key, slot in line.slots.items() if slot.replica.accepting}
        usable = line.outliers.usable(open_, self._clock())
        return [slot for key, slot in open_.items() if key in usable and key != avoid]

    def _choose(self, line: Line, avoid: Key | None) -> Slot | None:
        """Least in flight among those that can take one more; it is counted at once."""
        now = self._clock()
        among = self._open(line, avoid) or self._open(line, None)
        free = [slot for slot in among if slot.can_take(now)]
        if not free:
            return None
        slot = min(free, key=lambda slot: slot.in_flight)
        slot.in_flight += 1
        return slot

    def _serve(self, line: Line) -> None:
        """Give free places to the waiters in their order; who avoids a place is passed over."""
        kept: list[Waiter] = []
        while line.waiters:
            waiter = line.waiters.popleft()
            if waiter.place.done():  # cancelled, and about to leave by itself
                continue
            slot = self._choose(line, waiter.avoid)
            if slot is not None:
                waiter.place.set_result(slot)
                continue
            kept.append(waiter)
            if waiter.avoid is None:
                break
        line.waiters.extendleft(reversed(kept))

    def _refuse(self, line: Line, error: Exception) -> None:
        while line.waiters:
            place = line.waiters.popleft().place
            if not place.done():
                place.set_exception(error)

    def _unavailable(self, line: Line) -> Exception | None:
        """Why waiting would be in vain, None where it makes sense."""
        if self.draining:
            return Draining("the server is shutting down", retry_after=5)
        route = line.route
        if not route.expected and not any(s.replica.accepting for s in line.slots.values()):
            return ModelUnavailable(f"{route.name} is {route.state}: {route.why}", retry_after=10)
        return None

    def _retry_after(self, line: Line) -> float:
        """Seconds until the queue of now should be served, between 1 and 60."""
        places = sum(slot.replica.max_concurrency for slot in line.slots.values()) or 1
        return min(60.0, max(1.0, line.service_s * len(line.waiters) / places))
