"""Which waiting requests enter the batch next, and when the active adapter changes. Pure.

An adapter is a property of the whole model while a batch is computed, so requests of one adapter
run together. While nobody waits for another adapter, its requests enter as places come free. Once
somebody does, the turn is closed after a bounded number of entries or a bounded time; its requests
in flight end, then the adapter of the request that has waited longest takes its turn. Every turn
ends and the oldest waiter chooses the next one, so nobody starves.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class Admit:
    """These requests enter the batch now, in this order."""

    tickets: tuple[int, ...]


@dataclass(frozen=True)
class Switch:
    """The batch is empty: activate this adapter ("" is the base model) and call `switched`."""

    adapter: str


class Turns:
    """Who waits, who is in flight and whose turn it is; times are seconds of a steady clock."""

    def __init__(self, places: int, entries: int, seconds: float, adapter: str = "") -> None:
        self.active = adapter
        self._places, self._entries, self._seconds = places, entries, seconds
        self._waiting: OrderedDict[int, str] = OrderedDict()
        self._flying: set[int] = set()
        self._switching = False
        self._entered = 0  # since somebody waits for another adapter
        self._since: float | None = None

    @property
    def waiting(self) -> int:
        """Requests that have not entered the batch."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._flying)

    def join(self, ticket: int, adapter: str) -> None:
        """A request comes and waits."""
        self._waiting[ticket] = adapter

    def leave(self, ticket: int) -> None:
        """A request has ended or its client went away; unknown tickets are ignored."""
        self._waiting.pop(ticket, None)
        self._flying.discard(ticket)

    def switched(self) -> None:
        """The adapter that `Switch` named is active."""
        self._switching = False

    def decide(self, now: float) -> Admit | Switch | None:
        """What to do now; None where there is nothing to do before something changes."""
        if self._switching or not self._waiting:
            return None
        others = any(adapter != self.active for adapter in self._waiting.values())
        if not others:
            self._since, self._entered = None, 0
        elif self._since is None:
            self._since = now
        free = self._places - len(self._flying)
        if self._since is not None:
            free = min(free, self._entries - self._entered)
            if now - self._since >= self._seconds:
                free = 0
        mine = [t for t, adapter in self._waiting.items() if adapter == self.active][: max(free, 0)]
        if mine:
            for ticket in mine:
                del self._waiting[ticket]
            self._flying.update(mine)
            self._entered += len(mine) if others else 0
            return Admit(tuple(mine))
        if others and not self._flying:
            return self._switch()
        return None

    def _switch(self) -> Switch:
        self.active = next(a for a in self._waiting.values() if a != self.active)
        self._since, self._entered, self._switching = None, 0, True
        return Switch(self.active)
