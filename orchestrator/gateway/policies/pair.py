"""Power of two choices: of two replicas drawn by lot the less loaded one. Pure.

For large sets: looks at two instead of all, and several gateways that do the same do not all run to
the one replica that looked best a moment ago.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.gateway.policies.base import Fleet

_DRAWS = 4


class Pair:
    """`draw(n)` is a random number from 0 to n-1."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self._draw = draw

    def choose(self, fleet: Fleet, affinity: bytes) -> int | None:
        """The less loaded of two open ones; where lots find none, the first open one from there."""
        size = fleet.size
        if not size:
            return None
        for _ in range(_DRAWS):
            one = self._draw(size)
            other = (one + 1 + self._draw(size - 1)) % size if size > 1 else one
            found = [index for index in (one, other) if fleet.open(index)]
            if found:
                return min(found, key=fleet.load)
        start = self._draw(size)
        walk = ((start + step) % size for step in range(size))
        return next((index for index in walk if fleet.open(index)), None)
