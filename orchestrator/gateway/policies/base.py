"""What a policy may look at, and what it answers. Pure."""

from __future__ import annotations

from typing import Protocol


class Fleet(Protocol):
    """The replicas of one model, by index, as they are at this moment."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def total(self) -> int:
        """Requests in flight on all of them."""

    def load(self, index: int) -> int:
        """Requests in flight on one."""

    def open(self, index: int) -> bool:
        """Whether it may get one more now."""


class Policy(Protocol):
    """Chooses; the caller counts the request before anything else happens."""

    def choose(self, fleet: Fleet, affinity: bytes) -> int | None:
        """The index of an open replica, None only where none is open.

        `affinity` is a hash of what the request shares with its like; empty for nothing.
        """
