"""One writer at a time, across processes: locks that end with whoever holds them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

_LOOK_S = 0.2


@contextlib.asynccontextmanager
async def locked(path: Path, waiting: Callable[[], None]) -> AsyncIterator[int]:
    """Hold the lock file at `path`; gives its descriptor. `waiting` is called while others do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while not try_lock(file.fileno()):
            waiting()
            await asyncio.sleep(_LOOK_S)
        yield file.fileno()


def try_lock(file: int) -> bool:
    """Take the lock of an open file; False where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
