"""Reads this machine into a HardwareProfile: collects the facts, and lets `facts.py` judge them."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from engine_launchers.machine import HardwareProfile
from orchestrator.hardware import apple, bandwidth, child, nvml
from orchestrator.hardware.facts import Facts, assemble
from orchestrator.hardware.files import Disk, Files

NVML_CHILD = (sys.executable, "-P", str(Path(__file__).with_name("nvml_child.py")))
NVML_TIMEOUT_S = 15.0  # eight cards without persistence mode take several seconds to wake
_TOOL_TIMEOUT_S = 10.0
_WSL = "/usr/lib/wsl/lib"  # where WSL2 mounts the host's driver, not always in the linker's list
# Windows' IsProcessorFeaturePresent numbers (winnt.h) by the names used here
_WINDOWS_FEATURES = {39: "AVX", 40: "AVX2", 41: "AVX-512", 19: "NEON", 43: "DOTPROD"}


def probe(*, bandwidth_cache: Path | None = None) -> HardwareProfile:
    """What this process may use, now. What cannot be read becomes a note; nothing is raised.

    With a folder in `bandwidth_cache` the memory bandwidth is filled in: from that folder, or
    measured (about half a second) and kept there until the next boot.
    """
    profile = assemble(collect(Disk()))
    if bandwidth_cache is None:
        return profile
    found = bandwidth.cached(
        bandwidth_cache, bandwidth.boot_id(), profile.cpu_cores, profile.ram_available
    )
    notes = (*profile.notes, found.note) if found.note else profile.notes
    return profile.model_copy(update={"memory_bandwidth": found.rate, "notes": notes})


def collect(files: Files) -> Facts:
    """Everything that is read of this machine, whose files these are."""
    system = platform.system().lower()
    memory = psutil.virtual_memory()
    mac = system == "darwin"
    return Facts(
        files=files,
        system=system,
        machine=platform.machine(),
        nvml=ask_nvml(files),
        ram=(memory.total, memory.available),
        env=dict(os.environ),
        allowed=frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        cores=psutil.cpu_count(logical=False),
        isa=_windows_isa(),
        sysctl=child.run(apple.SYSCTL, _TOOL_TIMEOUT_S).text or "" if mac else "",
        displays=child.run(apple.DISPLAYS, _TOOL_TIMEOUT_S).text or "" if mac else "",
    )


def ask_nvml(
    files: Files,
    argv: Sequence[str] = NVML_CHILD,
    timeout_s: float = NVML_TIMEOUT_S,
) -> dict[str, Any] | str:
    """NVML's document, or in words why there is none. Starts no child where there is no driver."""
    if not (nvml.driver_files(files) or _library()):
        cards = nvml.cards_on_bus(files)
        found = f"{cards} NVIDIA GPU on the PCI bus, but " if cards else ""
        return f"{found}no NVIDIA driver library on this machine"
    env = dict(os.environ)
    if files.names(_WSL):
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, (env.get("LD_LIBRARY_PATH"), _WSL)))
    answer = child.run_json(argv, timeout_s, env)
    return f"NVIDIA driver could not be asked: it {answer}" if isinstance(answer, str) else answer


def _library() -> bool:
    """Whether the dynamic linker finds NVML, as in a container without the usual device files."""
    names = {"linux": "libnvidia-ml.so.1", "win32": "nvml.dll"}
    if sys.platform not in names:
        return False
    try:
        ctypes.CDLL(names[sys.platform])
    except OSError:
        return False
    return True


def _windows_isa() -> tuple[str, ...]:
    """What Windows tells of the processor; empty elsewhere."""
    if sys.platform != "win32":
        return ()
    present = ctypes.windll.kernel32.IsProcessorFeaturePresent
    return tuple(name for number, name in _WINDOWS_FEATURES.items() if present(number))
