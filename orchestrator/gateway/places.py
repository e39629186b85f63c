"""What the router keeps: models with their replicas, who waits for them, and who was let in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine_launchers.base import Served
from orchestrator.control import ModelRoute, Replica
from orchestrator.gateway.outliers import Key, Outliers
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


@dataclass
class Slot:
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


@dataclass(eq=False)
class Waiter:
    """One request in the queue; `avoid` is the replica that it failed on."""

    place: asyncio.Future[Slot]
    avoid: Key | None


@dataclass
class Line:
    """One model: its route, its replicas, and who waits for them."""

    route: ModelRoute
    slots: dict[Key, Slot] = field(default_factory=dict)
    waiters: deque[Waiter] = field(default_factory=deque)
    outliers: Outliers = field(default_factory=Outliers)
    service_s: float = 1.0
    """Moving average of how long a lease is held, for Retry-After."""


def key_of(replica: Replica) -> Key:
    """What tells one launch of one replica from all others."""
    return replica.id, replica.generation


@dataclass(frozen=True)
class Target:
    """What a name that a client gave stands for."""

    route: ModelRoute
    served: Served

    @property
    def call(self) -> dict[str, object]:
        """The body fields that make the engine take this very model or adapter."""
        return {**self.served.fields, "model": self.served.model}


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send one request to `replica` of `route`."""

    route: ModelRoute
    replica: Replica
    waited_s: float
    tally: Tally
    slot: Slot
    line: Line
    granted: float
    """The router's clock when the place was given."""
