"""The machine's own figures: processor, load, swap, disk. Read by a thread, shown as last read.

A disk that hangs holds up its reader for as long as it does, and nobody else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

_EVERY_S = 5.0
_FIRST_S = 1.0  # for so long the start waits for the first figures


class Host:
    """Reads from `start` to `stop`. `disk` is a path on the disk to tell of."""

    def __init__(self, disk: Path, every_s: float = _EVERY_S) -> None:
        self._disk, self._every_s = disk, every_s
        self._told: Mapping[str, float] = {}
        self._read, self._end = threading.Event(), threading.Event()

    def told(self) -> Mapping[str, float]:
        """As last read; what this system does not tell is left out."""
        return self._told

    def start(self) -> None:
        """Begin, and wait a moment for the first figures."""
        threading.Thread(target=self._run, name="host figures", daemon=True).start()
        self._read.wait(_FIRST_S)

    def stop(self) -> None:
        """No more of them."""
        self._end.set()

    def _run(self) -> None:
        psutil.cpu_percent()  # each thread's first has nothing to compare with
        self._told = _figures(self._disk)
        self._read.set()
        while not self._end.wait(self._every_s):
            self._told = {"cpu_ratio": psutil.cpu_percent() / 100, **_figures(self._disk)}


def _figures(disk: Path) -> dict[str, float]:
    told: dict[str, float] = {}
    with contextlib.suppress(OSError, psutil.Error):
        told["load1"] = psutil.getloadavg()[0]
    with contextlib.suppress(OSError, psutil.Error):
        told["swap_used_bytes"] = psutil.swap_memory().used
    with contextlib.suppress(OSError, psutil.Error):
        told["disk_free_bytes"] = psutil.disk_usage(str(disk)).free
    return told
