"""What the router keeps: models with their replicas, who waits for them, and who was let in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine_launchers.base import Served
from orchestrator.control import Dealings, ModelRoute, Replica
from orchestrator.errors import ModelUnavailable, UnknownModel
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.books import Count, OwnCount
from orchestrator.gateway.engine_pool import address_of
from orchestrator.gateway.fairness import Entry, FairQueue
from orchestrator.gateway.outliers import Key, Outliers
from orchestrator.gateway.pace import Pace
from orchestrator.gateway.policies.base import Policy
from orchestrator.gateway.policies.choice import policy_for
from orchestrator.gateway.policies.least import Least
from orchestrator.gateway.solo import Solo


@dataclass
class Tally:
    """What this gateway has had with one generation of one replica."""

    owed: int = 0
    relayed: int = 0
    answered: int = 0
    solo: Solo = field(default_factory=Solo)

    @contextmanager
    def owing(self) -> Iterator[None]:
        """While the engine owes a word, and nobody else does."""
        self.owed += 1
        try:
            yield
        finally:
            self.owed -= 1


class Slot:
    """One generation of one replica, as this gateway sees it, and the requests in flight on it."""

    def __init__(self, replica: Replica, count: Count | None = None) -> None:
        self.count: Count = count or OwnCount()
        self.rests_until = 0.0
        self.tally = Tally()
        self.key: Key = key_of(replica)
        self.become(replica)

    def become(self, replica: Replica) -> None:
        """Take what a table says of it now; what every request asks of that is kept at hand."""
        self.replica = replica
        self.accepting, self.places = replica.accepting, replica.max_concurrency
        self.address = address_of(replica.base_url)

    @property
    def load(self) -> int:
        """Requests in flight of all workers."""
        return self.count.own + self.count.others

    @property
    def roomy(self) -> bool:
        """Whether it takes one more, as far as anybody can tell."""
        return self.accepting and self.load < self.places

    @property
    def dealings(self) -> Dealings:
        """What the supervisor is told of it."""
        return Dealings(
            generation=self.replica.generation,
            owed=self.tally.owed,
            relayed=self.tally.relayed,
            answered=self.tally.answered,
            solo_tokens=self.tally.solo.tokens,
            solo_s=self.tally.solo.seconds,
        )

    def can_take(self, now: float) -> bool:
        """Whether it takes one more from here."""
        count = self.count
        free = count.own + count.others < self.places
        return free and self.accepting and self.rests_until <= now


@dataclass(eq=False)
class Waiter:
    """One request in the queue; `avoid` is the replica that it failed on."""

    place: asyncio.Future[Slot]
    ask: Ask
    avoid: Key | None


class Among:
    """The replicas of a line as a policy sees them, at this moment and for this request."""

    __slots__ = ("_barred", "_now", "_slots")

    def __init__(self, slots: Sequence[Slot], barred: frozenset[Key], now: float) -> None:
        self._slots, self._barred, self._now = slots, barred, now

    @property
    def size(self) -> int:
        """How many."""
        return len(self._slots)

    @property
    def total(self) -> int:
        """Requests in flight on all of them."""
        return sum(slot.load for slot in self._slots)

    def load(self, index: int) -> int:
        """Requests in flight on one."""
        return self._slots[index].load

    def open(self, index: int) -> bool:
        """Whether it takes one more, and is not left out."""
        slot = self._slots[index]
        return slot.can_take(self._now) and (
            not self._barred or key_of(slot.replica) not in self._barred
        )


@dataclass
class Line:
    """One model: its route, its replicas, and who waits for them."""

    route: ModelRoute
    slots: dict[Key, Slot] = field(default_factory=dict)
    queue: FairQueue[Waiter] = field(default_factory=FairQueue)
    outliers: Outliers = field(default_factory=Outliers)
    pace: Pace = field(default_factory=Pace)
    service_s: float = 1.0
    """Moving average of how long a lease is held, for Retry-After where nobody waited yet."""
    policy: Policy = field(default_factory=Least)
    order: tuple[Slot, ...] = ()
    """The slots by the index that the policy knows them by."""
    made_for: str = ""
    """The setting that the policy was made for."""

    def arrange(self, draw: Callable[[int], int]) -> None:
        """Make the policy anew where the replicas or the setting are not what it was made for."""
        order = tuple(self.slots.values())
        before = [slot.replica.id for slot in self.order], self.made_for
        self.order, self.made_for = order, self.route.routing
        ids = [slot.replica.id for slot in order]
        if before != (ids, self.made_for):
            self.policy = policy_for(self.route.routing, ids, draw)

    def barred(self, avoid: Key | None, now: float) -> frozenset[Key]:
        """The replicas that are left out: for failures, and `avoid` where there is another."""
        if self.outliers.quiet and avoid is None:
            return frozenset()
        open_ = [key for key, slot in self.slots.items() if slot.accepting]
        usable = self.outliers.usable(open_, now)
        if avoid is not None and usable - {avoid}:
            usable = usable - {avoid}
        return frozenset(self.slots.keys() - usable)

    def choose(self, ask: Ask, avoid: Key | None, now: float) -> Slot | None:
        """By the policy, among those that can take one more; it is counted at once."""
        if len(self.order) == 1:  # a choice of one needs no policy, and nobody is left out
            slot = self.order[0]
            if not slot.can_take(now):
                return None
            slot.count.own += 1
            return slot
        index = self.policy.choose(Among(self.order, self.barred(avoid, now), now), ask.affinity)
        if index is None:
            return None
        slot = self.order[index]
        slot.count.own += 1
        return slot

    @property
    def roomy(self) -> bool:
        """Whether there is a place that some request could have."""
        return any(slot.roomy for slot in self.slots.values())

    @property
    def load(self) -> tuple[int, int]:
        """Requests in flight and waiting, in all workers."""
        waiting = len(self.queue) + self.queue.crowd.others.requests
        return sum(slot.load for slot in self.slots.values()), waiting

    @property
    def own_load(self) -> tuple[int, int]:
        """The same of this worker."""
        return sum(slot.count.own for slot in self.slots.values()), len(self.queue)

    def unavailable(self) -> ModelUnavailable | None:
        """Why waiting would be in vain, None where it makes sense."""
        route = self.route
        if route.expected or any(slot.accepting for slot in self.slots.values()):
            return None
        return ModelUnavailable(f"{route.name} is {route.state}: {route.why}", retry_after=10)

    def refuse(self, error: Exception) -> None:
        """Send everybody home who waits."""
        for entry in self.queue:
            self.queue.remove(entry)
            if not entry.item.place.done():
                entry.item.place.set_exception(error)

    def retry_after(self) -> float:
        """Seconds until the queue of now should be served."""
        places = sum(slot.places for slot in self.slots.values()) or 1
        waiting = self.load[1]
        ahead = waiting / self.queue.crowd.workers  # of this worker's, whose pace it is
        return self.pace.retry_after(ahead, self.service_s * waiting / places)


def entry_of(waiter: Waiter, now: float) -> Entry[Waiter]:
    """A waiter as the queue sees it."""
    ask = waiter.ask
    return Entry(waiter, ask.key, ask.cost, ask.prompt_tokens, ask.priority, now)


def key_of(replica: Replica) -> Key:
    """What tells one launch of one replica from all others."""
    return replica.id, replica.generation


def unknown_model() -> UnknownModel:
    """The same words, whether there is no such model or it is not for this key."""
    return UnknownModel("no model of that name is served, see /v1/models", param="model")


class Target:
    """What a name that a client gave stands for, read from the route table once.

    `model` is the name of the route. `call` are the body fields that make the engine take this very
    model or adapter.
    """

    __slots__ = ("adapter", "call", "context", "model", "name", "route", "served")

    def __init__(self, route: ModelRoute, served: Served) -> None:
        self.route, self.served = route, served
        self.name, self.adapter = served.name, served.adapter
        self.model, self.context = route.name, route.context
        self.call: dict[str, object] = {**served.fields, "model": served.model}


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send one request to `replica` of `route`. The router gives it and takes it.

    `granted` is the router's clock. `tokens` is what the request really took, prompt and answer;
    None: as much as it asked for.
    """

    route: ModelRoute
    replica: Replica
    waited_s: float
    line: Line
    slot: Slot
    ask: Ask
    granted: float
    tokens: int | None = None

    @property
    def tally(self) -> Tally:
        """What was had with this replica."""
        return self.slot.tally
