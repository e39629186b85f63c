"""Who of those that wait is next: fair between keys, by priority, and nobody for ever. Pure.

Among keys of one priority it is deficit round robin, counted in tokens: in a round every waiting
key gets the same credit, just enough that one of them can pay for its first request. So two keys
that both have requests waiting get the same tokens, give or take one request. A key that has
nothing waiting saves nothing up. What was charged by estimate is put right by `settle`.

A request waits as if it had come one second earlier for each point of its priority: higher ones go
first, and one that has waited long enough goes before any that came later.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from orchestrator.gateway.books import (
    FIRST,
    NOBODY,
    Account,
    Cell,
    Crowd,
    Head,
    Held,
    NoCrowd,
)

T = TypeVar("T")
_SLACK = 16
AGING_S = 1.0  # seconds of waiting that are worth a point of priority


class Entry(Generic[T]):
    """One request in the queue. `since` is when it came, in monotonic seconds."""

    __slots__ = ("cost", "item", "key", "priority", "prompt", "since", "waits")

    def __init__(
        self, item: T, key: str, cost: int, prompt: int, priority: int, since: float
    ) -> None:
        self.item, self.key, self.cost, self.prompt = item, key, cost, prompt
        self.priority, self.since, self.waits = priority, since, True


class _Flow(Generic[T]):
    """The requests of one key at one priority, and what the round robin has paid for them."""

    __slots__ = ("account", "entries", "live")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.entries: deque[Entry[T]] = deque()
        self.live = 0

    def head(self) -> Entry[T]:
        while not self.entries[0].waits:
            self.entries.popleft()
        return self.entries[0]

    def tag(self) -> float:
        """What it will have been paid with its next request."""
        return self.account.value + self.head().cost

    def last(self) -> Entry[T]:
        while not self.entries[-1].waits:
            self.entries.pop()
        return self.entries[-1]


class _Band(Generic[T]):
    """All of one priority. `level` is the credit that every key was given since the start."""

    __slots__ = ("flows", "level")

    def __init__(self, level: Cell) -> None:
        self.level = level
        self.flows: dict[str, _Flow[T]] = {}

    def next(self) -> Entry[T]:
        """The head of the key that can pay first."""
        return min(self.flows.values(), key=_Flow.tag).head()

    def oldest(self) -> float:
        return min(flow.head().since for flow in self.flows.values())


class FairQueue(Generic[T]):
    """A queue of requests of many keys. Whoever waits is in it exactly once.

    `crowd` are those that wait for the same in the queues of other workers: the books are to be
    held while anything changes here.
    """

    def __init__(self, crowd: Crowd | None = None) -> None:
        self.crowd: Crowd = crowd or NoCrowd()
        self._first: deque[Entry[T]] = deque()
        self._bands: dict[int, _Band[T]] = {}
        self._counts: Counter[str] = Counter()
        self._prompts: Counter[str] = Counter()
        self.prompt_tokens = 0

    def __len__(self) -> int:
        return len(self._first) + self._counts.total()

    def __bool__(self) -> bool:
        return bool(self._first or self._counts)

    def __iter__(self) -> Iterator[Entry[T]]:
        yield from tuple(self._first)
        for band in tuple(self._bands.values()):
            for flow in tuple(band.flows.values()):
                yield from (each for each in tuple(flow.entries) if each.waits)

    def push(self, entry: Entry[T]) -> None:
        """Queue a request behind those of its key."""
        band = self._bands.get(entry.priority)
        if band is None:
            band = self._bands[entry.priority] = _Band(self.crowd.level(entry.priority))
        flow = band.flows.get(entry.key)
        if flow is None:
            account = self.crowd.account(entry.priority, entry.key)
            if account.fresh:
                account.value = band.level.value
            flow = band.flows[entry.key] = _Flow(account)
        flow.entries.append(entry)
        flow.live += 1
        self._count(entry, 1)

    def push_first(self, entry: Entry[T]) -> None:
        """Queue a request before all others: it had its turn already."""
        self._first.appendleft(entry)

    def first(self) -> tuple[Entry[T], ...]:
        """Those that go before all others, the next one first."""
        return tuple(self._first)

    def next(self) -> Entry[T] | None:
        """Whose turn it is among the others; nothing changes."""
        if not self._bands:
            return None
        return self._bands[self._turn()[1]].next()

    def _turn(self) -> tuple[float, int]:
        """Since when the band has waited whose turn it is, by its priority, and that."""
        return min((band.oldest() - AGING_S * at, at) for at, band in self._bands.items())

    @property
    def busy(self) -> bool:
        """Whether anybody waits, here or in another worker."""
        return bool(self._first or self._counts) or self.crowd.anybody

    def show(self, blocked: bool = False, urgent: bool = True) -> None:
        """Let the other workers see who waits here; `blocked`: in vain, as things are.

        Without `urgent`, those that go before all others here do not go before others elsewhere.
        """
        if self.crowd.alone:
            return
        head = NOBODY
        if self._first and (urgent or not self._bands):
            head = FIRST
        elif self._bands:
            order, at = self._turn()
            head = Head(order, at, min(flow.tag() for flow in self._bands[at].flows.values()))
        most = Held(max(self._counts.values(), default=0), max(self._prompts.values(), default=0))
        here = Held(len(self), self.prompt_tokens)
        self.crowd.show(here, most, head._replace(blocked=blocked))

    def serve(self, entry: Entry[T]) -> None:
        """Take a request out because it is served; its key pays."""
        band = self._bands.get(entry.priority)
        flow = band.flows.get(entry.key) if band else None
        if band and flow and entry.waits and entry not in self._first:
            flow.account.value += entry.cost
            band.level.value = max(band.level.value, flow.account.value)
        self.remove(entry)

    def remove(self, entry: Entry[T]) -> None:
        """Take a request out that waits no longer; without effect on one that is out."""
        if entry in self._first:
            self._first.remove(entry)
            entry.waits = False
        elif entry.waits:
            entry.waits = False
            self._count(entry, -1)
            band = self._bands[entry.priority]
            flow = band.flows[entry.key]
            flow.live -= 1
            if not flow.live:
                del band.flows[entry.key]
            elif len(flow.entries) > 2 * flow.live + _SLACK:  # many left from the middle
                flow.entries = deque(each for each in flow.entries if each.waits)
            if not band.flows:
                del self._bands[entry.priority]

    def settle(self, key: str, priority: int, surplus: int) -> None:
        """A request of the key took `surplus` tokens fewer than it paid for; may be negative."""
        band = self._bands.get(priority)
        if band is not None and (flow := band.flows.get(key)) is not None:
            flow.account.value -= surplus
        elif not self.crowd.alone:
            self.crowd.settle(priority, key, surplus)

    def victim(self, entry: Entry[T], by_tokens: bool) -> Entry[T] | None:
        """Who has to leave for `entry` when the queue is full; None where `entry` has no better
        claim to a place.

        The latest of the lowest priority below its own; else the latest of the key that has most,
        in requests or in tokens, where that is more than the key of `entry` would have.
        """
        lowest = min(self._bands, default=entry.priority)
        if lowest < entry.priority:
            flows = self._bands[lowest].flows.values()
            return max((flow.last() for flow in flows), key=lambda each: each.since)
        held, mine = (self._prompts, entry.prompt) if by_tokens else (self._counts, 1)
        most = max(held, key=held.__getitem__, default=entry.key)
        if most == entry.key or held[most] <= held[entry.key] + mine:
            return None
        return self._last_of(most)

    def overfull(self, entry: Entry[T], by_tokens: bool) -> bool:
        """Whether another worker has more of one key waiting than the key of `entry` has
        anywhere."""
        mine, here = self.crowd.held(entry.key), (self._counts, self._prompts)[by_tokens]
        wanted = mine[by_tokens] + here[entry.key] + (entry.prompt if by_tokens else 1)
        return self.crowd.most()[by_tokens] > wanted

    def fullest(self, by_tokens: bool) -> Entry[T] | None:
        """The latest of the key that has most here; None where another worker has more of one."""
        held = self._prompts if by_tokens else self._counts
        most = max(held, key=held.__getitem__, default=None)
        if most is None or held[most] < self.crowd.most()[by_tokens]:
            return None
        return self._last_of(most)

    def _last_of(self, key: str) -> Entry[T]:
        band = min(at for at, each in self._bands.items() if key in each.flows)
        return self._bands[band].flows[key].last()

    def _count(self, entry: Entry[T], sign: int) -> None:
        self._counts[entry.key] += sign
        self._prompts[entry.key] += sign * entry.prompt
        self.prompt_tokens += sign * entry.prompt
        held = Held(self._counts[entry.key], self._prompts[entry.key])
        self.crowd.hold(entry.key, held)
        if not held.requests:
            del self._counts[entry.key], self._prompts[entry.key]
