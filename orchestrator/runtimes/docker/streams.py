"""A stream that one thread opens and reads, and another one cuts."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any


class Cut:
    """Ends the reading of a stream, also of one that is only being opened."""

    def __init__(self) -> None:
        self.made = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None

    def opened(self, stream: Any) -> bool:
        """Whether the stream may be read; one that was cut before it was open is closed."""
        with self._lock:
            self._stream = stream
            if self.made.is_set():
                self._close()
                return False
            return True

    def make(self) -> None:
        """Whoever reads it is woken; nothing else is opened."""
        with self._lock:
            self.made.set()
            self._close()

    def _close(self) -> None:
        if self._stream is not None:
            with suppress(OSError, AttributeError, ValueError):  # it ended meanwhile
                self._stream.close()
