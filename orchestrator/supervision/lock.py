"""One supervisor per data directory, for as long as it lives: a lock the kernel gives back."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import AlreadyRunning


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`. Raises AlreadyRunning naming the holder's pid."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise AlreadyRunning(
                f"engineroom already runs on {path.parent} (pid {pid}): end it with "
                "`engineroom stop --all`, or choose another --data-dir"
            ) from None
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield
