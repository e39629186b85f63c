"""NVIDIA GPUs: from the raw document of `nvml_child.py` to nouns. Pure.

Figures are the driver's own. Total memory is what nvidia-smi prints, of which a context can use
2 to 4 % less. Indices are the driver's, in PCI order. MIG slices have none: they stand in their
card's place, are numbered on after the last card, and can only be addressed by uuid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine_launchers.machine import Gpu, GpuLink, GpuProcess, GpuPulse
from orchestrator.hardware.files import Files, number

PCI = "/sys/bus/pci/devices"

# NVML_TOPOLOGY_*: 0 internal, 10 one switch, 20 several switches, 30 one host bridge,
# 40 one NUMA node, 50 across sockets
_SWITCHES, _HOST_BRIDGE = 20, 30
_P2P_OK = 0
_LIBRARY_NOT_FOUND, _MISMATCH = 12, 18  # NVML_ERROR_*


@dataclass(frozen=True)
class Cards:
    """What one vendor's source says. A source that fails gives only notes."""

    gpus: tuple[Gpu, ...] = ()
    links: tuple[GpuLink, ...] = ()
    notes: tuple[str, ...] = ()


def driver_files(files: Files) -> bool:
    """Whether the kernel, or WSL2's host, offers an NVIDIA driver."""
    wsl = "libnvidia-ml.so.1" in files.names("/usr/lib/wsl/lib")
    return wsl or "nvidiactl" in files.names("/dev") or bool(files.names("/proc/driver/nvidia"))


def cards_on_bus(files: Files) -> int:
    """NVIDIA display devices that the PCI bus lists, with a driver or without."""
    folders = (f"{PCI}/{name}" for name in files.names(PCI))
    return sum(
        number(files.read(f"{folder}/vendor"), 0) == 0x10DE
        and (files.read(f"{folder}/class") or "").startswith("0x03")
        for folder in folders
    )


def parse(document: dict[str, Any], ram: tuple[int, int]) -> Cards:
    """The document's GPUs; a card with MIG enabled is replaced by its slices.

    `ram` is (total, available), for the GPUs that share it. A document that is not what
    `nvml_child.py` prints gives a note, as a broken driver does.
    """
    if document.get("error"):
        return Cards(notes=(_broken(str(document["error"]), document.get("code")),))
    try:
        return _cards(document, ram)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Cards(notes=(f"NVIDIA driver's answer could not be understood: {error!r}",))


def _broken(error: str, code: int | None) -> str:
    if code == _LIBRARY_NOT_FOUND:
        return (
            "NVIDIA device files are here, but no driver library (libnvidia-ml.so.1): "
            "start the container with the NVIDIA runtime, or install the driver"
        )
    mismatch = code == _MISMATCH
    cure = "restart the machine or reload the driver" if mismatch else "check it with nvidia-smi"
    return f"NVIDIA driver does not answer: {error.rstrip('.')}; {cure}"


def _cards(document: dict[str, Any], ram: tuple[int, int]) -> Cards:
    devices: list[dict[str, Any]] = document["devices"]
    gpus: list[Gpu] = []
    notes: list[str] = []
    for device in devices:
        index = device["index"]
        if not device.get("uuid") or not device.get("name"):
            notes.append(f"NVIDIA GPU {index} does not answer: left out; check it with nvidia-smi")
        elif not device.get("mig"):
            gpus.append(_gpu(document, device, ram))
        elif device["slices"]:
            first = len(devices) + sum(gpu.mig for gpu in gpus)
            for place, part in enumerate(device["slices"]):
                gpus.append(_slice(document, device, part, first + place))
        else:
            notes.append(f"NVIDIA GPU {index} has MIG enabled but no slices: left out")
    whole = {gpu.index for gpu in gpus if not gpu.mig}
    lanes = _lanes([device for device in devices if device["index"] in whole])
    links = tuple(
        _link(pair, lanes.get((pair["a"], pair["b"]), 0))
        for pair in document["pairs"]
        if {pair["a"], pair["b"]} <= whole
    )
    return Cards(tuple(gpus), links, tuple(notes))


def _gpu(document: dict[str, Any], device: dict[str, Any], ram: tuple[int, int]) -> Gpu:
    memory, capability = device["memory"], device.get("compute_capability")
    return Gpu(
        index=device["index"],
        uuid=device["uuid"],
        name=device["name"],
        vendor="nvidia",
        # DGX Spark, Jetson: the driver has no figure, since the GPU lives in the machine's RAM
        vram_total=memory["total"] if memory else ram[0],
        vram_free=memory["free"] if memory else ram[1],
        unified=memory is None,
        compute_capability=tuple(capability) if capability else None,
        driver=document.get("driver"),
        runtime_version=_cuda(document.get("cuda")),
        memory_bandwidth=_bandwidth(device),
        link=_pcie(device),
        processes=_processes(device),
        pulse=GpuPulse(**(device.get("pulse") or {})),
    )


def _slice(
    document: dict[str, Any], device: dict[str, Any], part: dict[str, Any], index: int
) -> Gpu:
    memory, whole = part["memory"], device["memory"]["total"]
    bandwidth = _bandwidth(device)
    return _gpu(document, {**device, "mig": False}, (0, 0)).model_copy(
        update={
            "index": index,
            "uuid": part["uuid"],
            "name": part["name"] or f"{device['name']} MIG",
            "vram_total": memory["total"],
            "vram_free": memory["free"],
            # a slice owns its share of the memory controllers
            "memory_bandwidth": bandwidth and bandwidth * memory["total"] // whole,
            "mig": True,
            "parent_uuid": device["uuid"],
            "processes": _processes(part),
            "pulse": GpuPulse(),  # the card's figures are of all slices together
        }
    )


def _processes(holder: dict[str, Any]) -> tuple[GpuProcess, ...]:
    return tuple(GpuProcess(**process) for process in holder.get("processes") or ())


def _cuda(version: int | None) -> str | None:
    """NVML's 12040 is CUDA 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else None


def _bandwidth(device: dict[str, Any]) -> int | None:
    """Bus width in bits times the memory clock in MHz, two transfers a clock, as bytes/s.

    NVML states the clock so that two transfers per cycle hold for GDDR and HBM alike: a 4090 has
    384 bits at 10501 MHz and 1008 GB/s, an H100 SXM 5120 bits at 2619 MHz and 3352 GB/s.
    """
    width, clock = device.get("bus_width"), device.get("memory_clock")
    return width // 8 * clock * 1_000_000 * 2 if width and clock else None


def _pcie(device: dict[str, Any]) -> str | None:
    """The newest generation of card and slot (an idle card lowers the present one), and lanes."""
    generation, width = device.get("pcie_generation"), device.get("pcie_width")
    return f"PCIe {generation}.0 x{width}" if generation and width else None


def _bus(text: str | None) -> str:
    """Bus ids come with a domain of four or of eight digits."""
    domain, _, rest = (text or "").lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _lanes(devices: list[dict[str, Any]]) -> dict[tuple[int, int], int]:
    """NVLinks between each two cards: their own, and what both have into the switches."""
    index = {_bus(device["bus_id"]): device["index"] for device in devices}
    direct: dict[tuple[int, int], int] = {}
    switched: dict[int, int] = {}
    for device in devices:
        here = device["index"]
        for link in device.get("nvlinks") or ():
            there = index.get(_bus(link["remote"]))
            if link["switch"]:
                switched[here] = switched.get(here, 0) + 1
            elif there is not None and here < there:
                direct[here, there] = direct.get((here, there), 0) + 1
    through = {
        (a, b): min(switched[a], switched[b]) for a in switched for b in switched if a < b
    }  # fmt: skip
    return {**through, **direct}


def _link(pair: dict[str, Any], lanes: int) -> GpuLink:
    """Without peer access even neighbours on one switch exchange data through host memory."""
    a, b, ancestor, p2p = pair["a"], pair["b"], pair.get("ancestor"), pair.get("p2p")
    if lanes:
        return GpuLink(a=a, b=b, kind="nvlink", lanes=lanes)
    far = ancestor is None or ancestor > (_SWITCHES if p2p is None else _HOST_BRIDGE)
    direct = not far and p2p in (None, _P2P_OK)
    return GpuLink(a=a, b=b, kind="pcie" if direct else "cpu")
