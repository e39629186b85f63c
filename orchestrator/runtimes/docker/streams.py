"""A stream that one thread opens and reads, and another one ends."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any


class Stream:
    """What one thread reads for as long as it comes, and another can end, even before it is
    there."""

    def __init__(self) -> None:
        self._lock, self._stream, self._ended = threading.Lock(), None, threading.Event()

    @property
    def ended(self) -> bool:
        """Whether nobody wants it any more."""
        return self._ended.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        self._ended.wait(seconds)

    def through(self, stream: Any) -> Any:
        """Read `stream` from now on, the one before is over."""
        with self._lock:
            self._stream = stream
            if self.ended:
                self._shut()
        return stream

    def end(self) -> None:
        """End it; blocks for nothing."""
        self._ended.set()
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        if self._stream is not None:
            with suppress(OSError, AttributeError, ValueError):  # it ended meanwhile
                self._stream.close()
