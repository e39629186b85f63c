"""How fast a line moves: the time between answers while somebody waits. Pure."""

from __future__ import annotations

_WEIGHT = 0.1
LONGEST_S = 60.0


class Pace:
    """A moving average of the gap between two answers, in seconds; clock times are handed in.

    Gaps in which the queue was empty say how often people ask, not how fast they are served: they
    do not count.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._gap: float | None = None

    def completed(self, now: float, waiting: int) -> None:
        """A place became free, and so many wait for one."""
        if self._last is not None:
            gap = now - self._last
            self._gap = gap if self._gap is None else self._gap + _WEIGHT * (gap - self._gap)
        self._last = now if waiting else None

    def retry_after(self, ahead: float, otherwise: float) -> float:
        """Seconds until those ahead are served, between 1 and 60; `otherwise`: nobody knows yet."""
        seconds = otherwise if self._gap is None else self._gap * ahead
        return min(LONGEST_S, max(1.0, seconds))
