"""What our own running engines hold is no obstacle to a plan."""

from __future__ import annotations

from pathlib import Path

from engine_launchers.machine import HardwareProfile
from orchestrator.runtimes.remains import resident_bytes, running_pids


def with_ours(hardware: HardwareProfile, folder: Path) -> HardwareProfile:
    """The machine as if nothing of ours ran: our engines are adopted, or make room.

    `folder` holds what they were started from.
    """
    available = min(hardware.ram_total, hardware.ram_available + resident_bytes(folder))
    ours = running_pids(folder)
    gpus = tuple(
        gpu.model_copy(
            update={
                "vram_free": min(
                    gpu.vram_total,
                    gpu.vram_free + sum(p.used or 0 for p in gpu.processes if p.pid in ours),
                ),
                "processes": tuple(p for p in gpu.processes if p.pid not in ours),
            }
        )
        for gpu in hardware.gpus
    )
    return hardware.model_copy(update={"ram_available": available, "gpus": gpus})
