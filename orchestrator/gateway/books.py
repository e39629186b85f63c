"""The numbers that all workers of a gateway go by, and what they are where it has but one. Pure.

What is limited (places of a replica, requests that wait, what a key may do) is limited for all
workers together. Each of them counts what is its own; the sum holds. Whoever looks at a sum and
then counts holds the books meanwhile: `with books:`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import NamedTuple, Protocol


class Count(Protocol):
    """How many: this worker's own, which only it changes, and all others'."""

    own: int

    @property
    def others(self) -> int:
        """Those of the other workers."""


class Cell(Protocol):
    """A number that every worker may change while it holds the books."""

    value: float


class Purse(Protocol):
    """What a bucket has to remember; both are 0 where no worker had it."""

    used: float
    at: float


class Head(NamedTuple):
    """Whose turn it is in one worker's queue: the least `order`, then the least `tag` of those of
    one `priority`. `blocked`: it was tried, and no free place is for it."""

    order: float
    priority: int
    tag: float
    blocked: bool = False


NOBODY = Head(inf, 0, inf)
FIRST = Head(-inf, 0, -inf)
"""One that had its turn before and lost it."""


class Held(NamedTuple):
    """Requests that wait, and the tokens of their prompts."""

    requests: int
    tokens: int


class Account(Protocol):
    """What the round robin has paid for a key that waits. `fresh`: it waits nowhere else."""

    value: float
    fresh: bool


class Crowd(Protocol):
    """Who else waits for one model, in the queues of the other workers."""

    alone: bool
    """There is no other worker."""
    workers: int

    @property
    def anybody(self) -> bool:
        """Whether anybody waits there."""

    @property
    def others(self) -> Held:
        """All that wait there."""

    def level(self, priority: int) -> Cell:
        """The credit that every key of a priority was given."""

    def account(self, priority: int, key: str) -> Account:
        """What was paid for a key. Kept for as long as it is kept hold of."""

    def settle(self, priority: int, key: str, surplus: int) -> None:
        """A key that waits only there took `surplus` tokens fewer than it paid for."""

    def held(self, key: str) -> Held:
        """What a key has waiting there."""

    def most(self) -> Held:
        """The most that any key has waiting in one of them, in requests and in tokens."""

    def hold(self, key: str, held: Held) -> None:
        """So much of a key waits here."""

    def show(self, held: Held, most: Held, head: Head) -> None:
        """What waits here, the most of one key, and whose turn it is here."""

    def turn(self) -> bool | None:
        """Whether it is this worker's turn; where it is another's, that one is told. None:
        nobody's."""

    def again(self) -> None:
        """Something changed: whoever found no place may find one now."""

    def tell_fullest(self, by_tokens: bool) -> None:
        """Tell whoever has most of one key, in requests or in tokens, that it is too much."""


class Books(Protocol):
    """See the module."""

    workers: int

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...

    def count(self, *name: str) -> Count:
        """What is counted under a name, in all workers the same."""

    def purse(self, *name: str) -> Purse:
        """The bucket of that name."""

    def crowd(self, model: str) -> Crowd:
        """Who waits for a model elsewhere."""


def whose_turn(heads: Iterable[Head]) -> int | None:
    """The index of the worker whose head is next of all; None where nobody waits who could."""
    free = [(at, head) for at, head in enumerate(heads) if head.order < inf and not head.blocked]
    if not free:
        return None
    _, soonest = min(free, key=lambda each: each[1].order)
    band = [(at, head) for at, head in free if head.priority == soonest.priority]
    return min(band, key=lambda each: (each[1].tag, each[1].order))[0]


# --- one worker: there are no others, and nobody to wait for --------------------------------------


class OwnCount:
    """A count without others."""

    __slots__ = ("own",)
    others = 0

    def __init__(self) -> None:
        self.own = 0


@dataclass(slots=True)
class OwnCell:
    """A number of one's own; as an account it is always fresh."""

    value: float = 0.0
    fresh: bool = True


@dataclass(slots=True)
class OwnPurse:
    """A bucket's memory of one's own."""

    used: float = 0.0
    at: float = 0.0


class NoCrowd:
    """Nobody waits elsewhere."""

    alone = True
    workers = 1
    anybody = False

    def __init__(self) -> None:
        self.others = Held(0, 0)

    def level(self, priority: int) -> Cell:
        return OwnCell()

    def account(self, priority: int, key: str) -> Account:
        return OwnCell()

    def settle(self, priority: int, key: str, surplus: int) -> None:
        """It waits nowhere."""

    def held(self, key: str) -> Held:
        return self.others

    def most(self) -> Held:
        return self.others

    def hold(self, key: str, held: Held) -> None:
        """Nobody asks."""

    def show(self, held: Held, most: Held, head: Head) -> None:
        """Nobody looks."""

    def turn(self) -> bool | None:
        return True

    def again(self) -> None:
        """Nobody was told otherwise."""

    def tell_fullest(self, by_tokens: bool) -> None:
        """It is this one."""


@dataclass
class OwnBooks:
    """The books of a gateway with one worker."""

    workers: int = 1
    _crowd: NoCrowd = field(default_factory=NoCrowd)

    def __enter__(self) -> object:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Nobody waits for them."""

    def count(self, *name: str) -> Count:
        return OwnCount()

    def purse(self, *name: str) -> Purse:
        return OwnPurse()

    def crowd(self, model: str) -> Crowd:
        return self._crowd
