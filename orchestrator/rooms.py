"""What every device of this machine has free now, for the memory ledger."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

import psutil

from engine_launchers.machine import HardwareProfile
from orchestrator.hardware import probe
from orchestrator.supervision.ledger import Holder, Room

_GPU_S = 5.0  # drivers answer in tenths of a second: not asked more often without need
_NAMED = 3


class Rooms:
    """Reads the machine in a thread; the GPUs only now and then unless somebody has to know."""

    def __init__(self) -> None:
        self._latest: HardwareProfile | None = None
        self._read_at = 0.0

    async def __call__(self, explain: bool = False) -> Mapping[str, Room]:
        """Device to its room; `explain`: read anew, and who holds most of the RAM."""
        return await asyncio.to_thread(self._read, explain)

    def _read(self, explain: bool) -> dict[str, Room]:
        latest = self._latest
        old = time.monotonic() - self._read_at > _GPU_S
        if latest is None or not latest.gpus or old or explain:
            latest = self._latest = probe()
            self._read_at = time.monotonic()
        holders = _largest() if explain else ()
        rooms = {"ram": Room(latest.ram_total, latest.ram_available, holders)}
        for gpu in latest.gpus:
            held = tuple(Holder(p.pid, p.name or "?", p.used or 0) for p in gpu.processes)
            rooms[f"gpu:{gpu.index}"] = Room(gpu.vram_total, gpu.vram_free, held, gpu.pulse)
        return rooms


def _largest() -> tuple[Holder, ...]:
    """The processes that hold most RAM."""
    found: list[Holder] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.append(Holder(process.pid, process.name(), process.memory_info().rss))
    return tuple(sorted(found, key=lambda each: -each.held)[:_NAMED])
