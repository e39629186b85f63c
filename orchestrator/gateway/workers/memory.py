"""Rows of numbers in memory that several processes share.

A row has a name, a few numbers in common, and for each worker a column of its own: what it counts,
nobody else changes while it lives. So a worker that fails in the middle of something spoils no
count of another. Rows are made when somebody asks for them and free when nobody holds them any
more.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

COMMON = 4  # numbers in common
MINE = 9  # numbers of each worker, of which the first says that it holds the row
_ROWS = 16384
_NAME = 16
_TRIES = 64  # rows that are looked at for one that is free, once all have been used
_HEAD = 16  # bytes before the names: how many there are
_PATIENCE_S = 0.05
_DISTRUST_S = 1.0
_log = logging.getLogger("engineroom.gateway")


class Row:
    """One row, held for as long as this object lives."""

    __slots__ = ("__weakref__", "_cells", "_start", "_worker", "_workers")

    def __init__(self, cells: memoryview[float], start: int, worker: int, workers: int) -> None:
        self._cells, self._start = cells, start
        self._worker, self._workers = worker, workers
        self._cells[self._at(0, worker)] = 1.0

    def __del__(self) -> None:
        for place in range(MINE):
            self._cells[self._at(place, self._worker)] = 0.0

    def common(self, place: int) -> float:
        """A number in common."""
        return float(self._cells[self._start + place])

    def set_common(self, place: int, value: float) -> None:
        """Change it; the memory has to be locked."""
        self._cells[self._start + place] = value

    def mine(self, place: int) -> float:
        """A number of this worker's."""
        return float(self._cells[self._at(place, self._worker)])

    def set_mine(self, place: int, value: float) -> None:
        """Change it."""
        self._cells[self._at(place, self._worker)] = value

    def set_theirs(self, place: int, worker: int, value: float) -> None:
        """Change another's; the memory has to be locked."""
        self._cells[self._at(place, worker)] = value

    def each(self, place: int) -> list[float]:
        """The number of every worker, in their order."""
        start = self._at(place, 0)
        return list(self._cells[start : start + self._workers])

    def others(self, place: int) -> float:
        """The sum of all other workers'."""
        start = self._start + COMMON + place * self._workers
        cells = self._cells
        return sum(cells[start : start + self._workers]) - cells[start + self._worker]

    @property
    def holders(self) -> int:
        """Workers that hold the row."""
        return int(sum(self.each(0)))

    def _at(self, place: int, worker: int) -> int:
        return self._start + COMMON + place * self._workers + worker


class Memory:
    """All rows, by one worker of several. `fd` is an open file of `size(workers)` bytes."""

    def __init__(self, fd: int, worker: int, workers: int) -> None:
        self._fd, self._worker, self._workers = fd, worker, workers
        self._map = mmap.mmap(fd, size(workers))
        self._cells = memoryview(self._map)[_HEAD + _ROWS * _NAME :].cast("d")
        self._rows: WeakValueDictionary[bytes, Row] = WeakValueDictionary()
        self._distrusted_until = 0.0
        self._held = self._warned = False
        self._hand = worker * (_ROWS // workers)
        with self.locked():
            self._beat = self.row("beat")

    def beat(self) -> None:
        """This worker gets on."""
        self._beat.set_mine(1, time.monotonic())

    def beats(self) -> list[float]:
        """When each worker last got on, in monotonic seconds; 0: it has not begun."""
        return self._beat.each(1)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold it; see `lock`."""
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def lock(self) -> None:
        """Keep all others out.

        The kernel frees the lock of a process that dies. One that was stopped while it held it
        keeps nobody waiting for long: then the memory is used without, for a while, a limit may be
        passed by a request or two, and no row is made that others would know.
        """
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._held = True
        except OSError:
            self._held = self._insist()

    def _insist(self) -> bool:
        now = time.monotonic()
        deadline = now + _PATIENCE_S
        while self._distrusted_until < now < deadline:
            os.sched_yield()
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                now = time.monotonic()
            else:
                return True
        if now >= deadline:
            self._distrusted_until = now + _DISTRUST_S
        return False

    def unlock(self) -> None:
        """Let others in."""
        self._held = False
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def row(self, *name: str) -> Row:
        """The row of that name; the memory has to be locked.

        When there are no more rows it is one of this worker's own, and its limits count here only.
        What nobody holds has no past.
        """
        digest = _digest(name)
        if (row := self.known(*name)) is not None:
            return row
        index = self._find(digest)
        if index is None and self._held:
            index = self._free()
        if index is None:
            if not self._warned:
                self._warned = True
                _log.warning("no room for %s in what the workers share: limits hold in each", name)
            own = memoryview(bytearray(8 * self._width)).cast("d")
            row = Row(own, 0, self._worker, self._workers)
        else:
            self._map[_HEAD + index * _NAME : _HEAD + (index + 1) * _NAME] = digest
            for place in range(self._width):
                self._cells[index * self._width + place] = 0.0
            row = Row(self._cells, index * self._width, self._worker, self._workers)
        self._rows[digest] = row
        return row

    def known(self, *name: str) -> Row | None:
        """The row of that name where anybody holds it; the memory has to be locked."""
        digest = _digest(name)
        if (row := self._rows.get(digest)) is not None:
            return row
        index = self._find(digest)
        if index is None or not self._is_held(index):
            return None
        row = Row(self._cells, index * self._width, self._worker, self._workers)
        self._rows[digest] = row
        return row

    def clear(self, worker: int) -> None:
        """Forget all that a dead worker had; the memory has to be locked."""
        for index in range(self._named):
            start = index * self._width + COMMON + worker
            for place in range(MINE):
                self._cells[start + place * self._workers] = 0.0

    @property
    def _width(self) -> int:
        return COMMON + MINE * self._workers

    @property
    def _named(self) -> int:
        """Rows that ever had a name: the first ones."""
        return int.from_bytes(self._map[:_HEAD], "little")

    def _find(self, digest: bytes) -> int | None:
        end = _HEAD + self._named * _NAME
        at = self._map.find(digest, _HEAD, end)
        while at >= 0 and at % _NAME:
            at = self._map.find(digest, at + 1, end)
        return None if at < 0 else (at - _HEAD) // _NAME

    def _free(self) -> int | None:
        """A row that never had a name, else one that nobody holds."""
        if (unused := self._named) < _ROWS:
            self._map[:_HEAD] = (unused + 1).to_bytes(_HEAD, "little")
            return unused
        for _ in range(min(_TRIES, _ROWS)):
            self._hand = (self._hand + 1) % _ROWS
            if not self._is_held(self._hand):
                return self._hand
        return None

    def _is_held(self, index: int) -> bool:
        start = index * self._width + COMMON
        return any(self._cells[start : start + self._workers])


def _digest(name: tuple[str, ...]) -> bytes:
    return hashlib.blake2b("\0".join(name).encode(), digest_size=_NAME).digest()


def size(workers: int) -> int:
    """Bytes of the memory of so many workers."""
    return _HEAD + _ROWS * (_NAME + 8 * (COMMON + MINE * workers))


def make(workers: int) -> int:
    """Memory of that size that is a file without a name; its descriptor. Raises OSError."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("engineroom")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size(workers))
    return fd
