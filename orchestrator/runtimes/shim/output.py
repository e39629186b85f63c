"""The file that an engine writes its output to, kept within its size."""

from __future__ import annotations

import contextlib
import os
import time

_LOOK_S = 0.02  # between two looks at a file that grows as fast as the disk takes it
_SLACK = 0.05  # of the size: what may be written between two looks
_FLOOD_S = 3.0  # a flood that fills a whole file in so many seconds never catches us asleep
_REST = 65_536  # bytes: less than this is not worth another round of copying


class Output:
    """One log file and the older ones beside it.

    It is copied and truncated: the engine appends to an open file that must stay the same one. How
    soon it is looked at again follows from how fast it grows and how much room is left.
    """

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self.path, self.max_bytes, self.files = path, max_bytes, files
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.size, self.at, self.look_at = os.fstat(self.fd).st_size, time.monotonic(), 0.0

    def keep_small(self, tick_s: float) -> None:
        """Rotate where it is time to; at most once in `tick_s` where nothing is written."""
        now = time.monotonic()
        if now < self.look_at:
            return
        size = os.fstat(self.fd).st_size
        rate = max(0, size - self.size) / max(now - self.at, 0.001)
        if size > self.max_bytes:
            self.rotate()
            size = os.fstat(self.fd).st_size
        room = max(0, self.max_bytes - size) + _SLACK * self.max_bytes
        pause = room / max(2 * rate, self.max_bytes / _FLOOD_S)
        self.size, self.at = size, time.monotonic()
        self.look_at = self.at + min(max(pause, _LOOK_S), tick_s)

    def rotate(self) -> None:
        """Move the older files on, copy this one, and empty it."""
        for number in range(self.files, 1, -1):
            with contextlib.suppress(OSError):
                os.replace(f"{self.path}.{number - 1}", f"{self.path}.{number}")
        with contextlib.suppress(OSError):  # a full disk: what cannot be kept is dropped
            self._copy(f"{self.path}.1")
        os.ftruncate(self.fd, 0)

    def _copy(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        copy = os.open(path, flags, 0o600)
        try:
            done = 0
            while (size := os.fstat(self.fd).st_size) - done > (_REST if done else 0):
                while done < size and (sent := os.sendfile(copy, self.fd, done, size - done)):
                    done += sent
                if done > 2 * self.max_bytes:  # it is written faster than copied
                    return
        finally:
            os.close(copy)
