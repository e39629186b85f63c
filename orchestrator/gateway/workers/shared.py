"""The books of a gateway with several workers, in the memory that they share."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from orchestrator.gateway.books import (
    NOBODY,
    Account,
    Cell,
    Count,
    Crowd,
    Head,
    Held,
    Purse,
    whose_turn,
)
from orchestrator.gateway.workers.memory import Memory, Row

_COUNT = 1  # of a worker's numbers, in rows of counts
_REQUESTS, _TOKENS, _MOST_REQUESTS, _MOST_TOKENS = 1, 2, 3, 4  # in the row of a model's crowd
_ORDER, _PRIORITY, _TAG, _BLOCKED = 5, 6, 7, 8


class SharedCount:
    """A count whose parts are in one row."""

    __slots__ = ("_row",)

    def __init__(self, row: Row) -> None:
        self._row = row

    @property
    def own(self) -> int:
        return int(self._row.mine(_COUNT))

    @own.setter
    def own(self, value: int) -> None:
        self._row.set_mine(_COUNT, value)

    @property
    def others(self) -> int:
        return int(self._row.others(_COUNT))


class SharedCell:
    """A number that all have in common. `fresh`: nobody held it when it was made."""

    __slots__ = ("_row", "fresh")

    def __init__(self, row: Row, fresh: bool = False) -> None:
        self._row, self.fresh = row, fresh

    @property
    def value(self) -> float:
        return self._row.common(0)

    @value.setter
    def value(self, value: float) -> None:
        self._row.set_common(0, value)


class SharedPurse:
    """A bucket that all fill and empty."""

    __slots__ = ("_row",)

    def __init__(self, row: Row) -> None:
        self._row = row

    @property
    def used(self) -> float:
        return self._row.common(0)

    @used.setter
    def used(self, value: float) -> None:
        self._row.set_common(0, value)

    @property
    def at(self) -> float:
        return self._row.common(1)

    @at.setter
    def at(self, value: float) -> None:
        self._row.set_common(1, value)


class SharedCrowd:
    """Who waits for one model, each worker's queue by what it shows of it."""

    alone = False

    def __init__(self, books: SharedBooks, model: str) -> None:
        self._books, self._model, self.workers = books, model, books.workers
        self._row = books.row("crowd", model)
        self._held: dict[str, Row] = {}

    @property
    def anybody(self) -> bool:
        return self._row.others(_REQUESTS) > 0

    @property
    def others(self) -> Held:
        return Held(int(self._row.others(_REQUESTS)), int(self._row.others(_TOKENS)))

    def level(self, priority: int) -> Cell:
        return SharedCell(self._books.row("level", self._model, str(priority)))

    def account(self, priority: int, key: str) -> Account:
        row = self._books.row("account", self._model, str(priority), key)
        return SharedCell(row, fresh=row.holders == 1)

    def settle(self, priority: int, key: str, surplus: int) -> None:
        row = self._books.known("account", self._model, str(priority), key)
        if row is not None:
            row.set_common(0, row.common(0) - surplus)

    def held(self, key: str) -> Held:
        row = self._held.get(key) or self._books.known("held", self._model, key)
        if row is None:
            return Held(0, 0)
        return Held(int(row.others(_REQUESTS)), int(row.others(_TOKENS)))

    def most(self) -> Held:
        me = self._books.worker
        requests, tokens = (self._row.each(place) for place in (_MOST_REQUESTS, _MOST_TOKENS))
        del requests[me], tokens[me]
        return Held(int(max(requests)), int(max(tokens)))

    def hold(self, key: str, held: Held) -> None:
        if not held.requests:
            self._held.pop(key, None)
            return
        row = self._held.get(key)
        if row is None:
            row = self._held[key] = self._books.row("held", self._model, key)
        row.set_mine(_REQUESTS, held.requests)
        row.set_mine(_TOKENS, held.tokens)

    def show(self, held: Held, most: Held, head: Head) -> None:
        row = self._row
        row.set_mine(_REQUESTS, held.requests)
        row.set_mine(_TOKENS, held.tokens)
        row.set_mine(_MOST_REQUESTS, most.requests)
        row.set_mine(_MOST_TOKENS, most.tokens)
        row.set_mine(_ORDER, head.order)
        row.set_mine(_PRIORITY, head.priority)
        row.set_mine(_TAG, head.tag)
        row.set_mine(_BLOCKED, head.blocked)

    def turn(self) -> bool | None:
        whose = whose_turn(self._heads())
        if whose is None:
            return None
        if whose != self._books.worker:
            self._books.wake(whose)
        return whose == self._books.worker

    def again(self) -> None:
        for worker in range(self._books.workers):
            self._row.set_theirs(_BLOCKED, worker, 0.0)

    def tell_fullest(self, by_tokens: bool) -> None:
        most = self._row.each(_MOST_TOKENS if by_tokens else _MOST_REQUESTS)
        most[self._books.worker] = -1.0
        self._books.wake(most.index(max(most)))

    def _heads(self) -> list[Head]:
        places = _REQUESTS, _ORDER, _PRIORITY, _TAG, _BLOCKED
        columns = zip(*map(self._row.each, places), strict=True)
        return [
            Head(order, int(priority), tag, bool(blocked)) if waiting else NOBODY
            for waiting, order, priority, tag, blocked in columns
        ]


class SharedBooks:
    """See the module. `wake` tells another worker, by its number, to look at its queues."""

    def __init__(
        self, memory: Memory, worker: int, workers: int, wake: Callable[[int], None]
    ) -> None:
        self._memory, self.worker, self.workers, self.wake = memory, worker, workers, wake
        self._depth = 0

    def __enter__(self) -> SharedBooks:
        self._depth += 1
        if self._depth == 1:
            self._memory.lock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._memory.unlock()

    def row(self, *name: str) -> Row:
        """The row of that name."""
        with self:
            return self._memory.row(*name)

    def known(self, *name: str) -> Row | None:
        """The same, where anybody holds it."""
        with self:
            return self._memory.known(*name)

    def count(self, *name: str) -> Count:
        """What is counted under a name."""
        return SharedCount(self.row("count", *name))

    def purse(self, *name: str) -> Purse:
        """The bucket of that name."""
        return SharedPurse(self.row("purse", *name))

    def crowd(self, model: str) -> Crowd:
        """Who waits for a model elsewhere."""
        return SharedCrowd(self, model)
