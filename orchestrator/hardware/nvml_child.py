"""A program of its own: asks NVML everything and prints one JSON document of raw facts.

It is run as a child because a call into a broken driver can hang for ever or end the process, and
neither can be undone from a thread. Run by path, with nothing of ours imported, so that it starts
fast. The document's shape:

    {"driver": "550.54.15", "cuda": 12040, "devices": [...], "pairs": [...]}   or   {"error": "…"}

A field that the driver does not support is null. `nvml.py` turns the document into nouns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pynvml

_P2P_READ = 0  # the binding's NVML_P2P_CAPS_INDEX_READ is a tuple by mistake
_SWITCH = 2
_FAULTS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)


def ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call's answer, None where this driver, card or mode does not support the question."""
    try:
        answer = call(*arguments)
    except _FAULTS:
        return None
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


def facts() -> dict[str, Any]:
    """The whole document. An error of the driver as such is its only key, `error`."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except _FAULTS as error:
        code = getattr(error, "value", None)
        # the library's own words are those that nvidia-smi prints and people search for
        return {"error": ask(pynvml.nvmlErrorString, code) or str(error), "code": code}
    handles = {index: ask(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)}
    known = {index: handle for index, handle in handles.items() if handle is not None}
    return {
        "driver": ask(pynvml.nvmlSystemGetDriverVersion),
        "cuda": ask(pynvml.nvmlSystemGetCudaDriverVersion_v2),
        "devices": [device(index, handle) for index, handle in handles.items()],
        "pairs": [pair(a, b, known) for a in known for b in known if a < b],
    }


def device(index: int, handle: Any) -> dict[str, Any]:
    """One card. `uuid` null says that the card is listed but does not answer."""
    if handle is None:
        return {"index": index, "uuid": None}
    mig = ask(pynvml.nvmlDeviceGetMigMode, handle)
    pci = ask(pynvml.nvmlDeviceGetPciInfo, handle)
    return {
        "index": index,
        "uuid": ask(pynvml.nvmlDeviceGetUUID, handle),
        "name": ask(pynvml.nvmlDeviceGetName, handle),
        "bus_id": None if pci is None else text(pci.busId),
        "memory": memory(handle),
        "compute_capability": ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        "bus_width": ask(pynvml.nvmlDeviceGetMemoryBusWidth, handle),
        "memory_clock": ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        "pcie_generation": ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        "pcie_width": ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        "mig": None if mig is None else bool(mig[0]),
        "slices": slices(handle) if mig and mig[0] else [],
        "processes": processes(handle),
        "pulse": pulse(handle),
        "nvlinks": nvlinks(handle),
    }


def text(value: Any) -> str:
    """A string of a structure, which some versions of the binding leave as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def memory(handle: Any) -> dict[str, int] | None:
    """Bytes as nvidia-smi shows them; None for a GPU that has no memory of its own."""
    answer = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if answer is None:
        return None
    return {"total": answer.total, "free": answer.free, "used": answer.used}


def pulse(handle: Any) -> dict[str, float | None]:
    """Share of the last moment in which it computed, degrees, watts."""
    used = ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    degrees = ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    milliwatts = ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    return {
        "busy": None if used is None else used.gpu / 100,
        "celsius": degrees,
        "watts": None if milliwatts is None else milliwatts / 1000,
    }


def slices(handle: Any) -> list[dict[str, Any]]:
    """The MIG slices of a card, which may be none yet."""
    found: list[dict[str, Any]] = []
    for number in range(ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if part is not None:
            found.append(
                {
                    "uuid": ask(pynvml.nvmlDeviceGetUUID, part),
                    "name": ask(pynvml.nvmlDeviceGetName, part),
                    "gpu_instance": ask(pynvml.nvmlDeviceGetGpuInstanceId, part),
                    "compute_instance": ask(pynvml.nvmlDeviceGetComputeInstanceId, part),
                    "memory": memory(part),
                    "processes": processes(part),
                }
            )
    return found


def processes(handle: Any) -> list[dict[str, Any]]:
    """Who holds memory, by compute and by graphics; one entry per process, the larger figure."""
    held: dict[int, int | None] = {}
    for call in (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetComputeRunningProcesses_v2,  # drivers before 510 lack the newer one
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
    ):
        for process in ask(call, handle) or []:
            used = process.usedGpuMemory
            held[process.pid] = max(held.get(process.pid) or 0, used or 0) or None
    return [{"pid": pid, "name": name(pid), "used": used} for pid, used in held.items()]


def name(pid: int) -> str | None:
    """The program's name, None where it is another user's.

    In a container with process numbers of its own the driver still counts the host's: then a name
    is usually missing, and can be that of another process with the same number.
    """
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return None


def nvlinks(handle: Any) -> list[dict[str, Any]]:
    """The NVLinks that are up: the bus id at the other end, and whether that is a switch."""
    found: list[dict[str, Any]] = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if not ask(pynvml.nvmlDeviceGetNvLinkState, handle, link):
            continue
        remote = ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        kind = ask(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
        bus = None if remote is None else text(remote.busId)
        found.append({"link": link, "remote": bus, "switch": kind == _SWITCH})
    return found


def pair(a: int, b: int, handles: dict[int, Any]) -> dict[str, Any]:
    """The nearest common ancestor of two cards (NVML's level) and whether peers may read."""
    return {
        "a": a,
        "b": b,
        "ancestor": ask(pynvml.nvmlDeviceGetTopologyCommonAncestor, handles[a], handles[b]),
        "p2p": ask(pynvml.nvmlDeviceGetP2PStatus, handles[a], handles[b], _P2P_READ),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
