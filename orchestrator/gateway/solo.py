"""How fast an engine decodes for one request alone, from streams that had it to themselves. Pure.

A stream counts whose text came token by token from an engine that did nothing else for this
gateway, while the gateway waited for the engine and not for the client. Times are in seconds, on
the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = 16  # tokens, from which a stream tells of more than its beginning
SEEN = 0.8  # of the counted tokens have to come as text: thoughts and calls hide theirs
_OWED = 0.5  # of the time has to be the engine's: a slow reader finds it ahead


@dataclass(eq=False, slots=True)
class Run:
    """One stream: when its first text came and its last event, and what it waited in between."""

    alone: bool = True
    began: float | None = None
    ended: float = 0.0
    owed_s: float = 0.0
    events: int = 0

    def came(self, asked: float, at: float, pieces: int) -> None:
        """Pieces of text, or none, came at `at`; the gateway had waited for them since `asked`."""
        self.ended = at
        if self.began is not None:
            self.owed_s += at - asked
            self.events += pieces
        elif pieces:
            self.began = at
            self.events = pieces - 1

    def decoded(self, counted: int | None) -> tuple[int, float]:
        """The tokens after the first, and their seconds; nothing of a stream that tells nothing.

        `counted`: all tokens, by the engine's own count where it gave one.
        """
        if self.began is None or not self.alone:
            return 0, 0.0
        tokens = self.events if counted is None else counted - 1
        seconds = self.ended - self.began
        told = tokens >= _LEAST and self.events >= SEEN * tokens
        return (tokens, seconds) if told and self.owed_s >= _OWED * seconds > 0 else (0, 0.0)


class Solo:
    """What one generation of a replica decoded for streams that were alone; both only grow."""

    __slots__ = ("_lone", "_running", "seconds", "tokens")

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0
        self._running = 0
        self._lone: Run | None = None

    def begin(self) -> Run | None:
        """A call begins, and is to be ended once; None where it overlaps another, and neither of
        them is alone."""
        self._running += 1
        lone = self._lone
        if self._running == 1:
            self._lone = lone = Run()
            return lone
        if lone is not None:
            lone.alone, self._lone = False, None
        return None

    def end(self, run: Run | None) -> None:
        """It ended, however."""
        self._running -= 1
        if run is not None and run is self._lone:
            self._lone = None

    def add(self, run: Run, counted: int | None) -> None:
        """A stream ended in order."""
        tokens, seconds = run.decoded(counted)
        self.tokens += tokens
        self.seconds += seconds
