"""Reads this machine into a HardwareProfile. The only impure file of `hardware`, with `nvml`."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from engine_launchers.machine import HardwareProfile
from orchestrator.hardware import cpu
from orchestrator.hardware.cgroup import Limits, cgroup_limits
from orchestrator.hardware.nvml import nvidia_gpus

CGROUP_ROOT = Path("/sys/fs/cgroup")


def probe() -> HardwareProfile:
    """What this process may use, now. What cannot be read becomes a note."""
    notes: list[str] = []
    gpus, gpu_notes = nvidia_gpus()
    notes += gpu_notes
    limits = _limits(notes)
    cpuinfo = _read(Path("/proc/cpuinfo"), notes)
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    if limits.memory_limit is not None and limits.memory_limit < total:
        notes.append(f"memory limited by cgroup to {limits.memory_limit / 2**30:.1f} GiB")
        total = limits.memory_limit
    if limits.memory_free is not None:
        available = min(available, limits.memory_free)
    return HardwareProfile(
        gpus=gpus,
        ram_total=total,
        ram_available=available,
        cpu_cores=_cores(cpuinfo, limits, notes),
        isa=cpu.instruction_sets(cpuinfo),
        platform=f"{platform.system().lower()}-{platform.machine()}",
        notes=tuple(notes),
    )


def _read(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text()
    except OSError as error:
        notes.append(f"{path}: {error.strerror}")
        return ""


def _limits(notes: list[str]) -> Limits:
    membership = _read(Path("/proc/self/cgroup"), notes)
    try:
        return cgroup_limits(CGROUP_ROOT, membership) if membership else Limits()
    except (OSError, ValueError) as error:
        notes.append(f"cgroup limits could not be read: {error}")
        return Limits()


def _cores(cpuinfo: str, limits: Limits, notes: list[str]) -> int:
    allowed = frozenset(os.sched_getaffinity(0))
    cores = cpu.physical_cores(cpuinfo, allowed)
    if limits.cpus is not None and limits.cpus < cores:
        notes.append(f"cores limited by cgroup to {limits.cpus:g} processors' time")
        cores = max(1, int(limits.cpus))
    return cores
