"""Least in flight: the shortest line, the first of equals. Pure."""

from __future__ import annotations

from orchestrator.gateway.policies.base import Fleet


class Least:
    """Looks at every replica: best balance, no memory of prefixes."""

    def choose(self, fleet: Fleet, affinity: bytes) -> int | None:
        """The open replica with the fewest requests in flight."""
        best, fewest = None, 0
        for index in range(fleet.size):
            if fleet.open(index) and (best is None or fleet.load(index) < fewest):
                best, fewest = index, fleet.load(index)
        return best
