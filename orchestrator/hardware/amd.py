"""AMD GPUs from the kernel: KFD's topology for what ROCm can use, DRM for memory and names. Pure.

Where the kernel has no KFD, DRM alone lists the cards, and a note says that ROCm cannot run.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine_launchers.machine import Gpu, GpuLink, GpuProcess
from orchestrator.hardware.files import Files, number, pairs
from orchestrator.hardware.nvml import Cards

KFD = "/sys/class/kfd/kfd"
DRM = "/sys/class/drm"
IDS = "/usr/share/libdrm/amdgpu.ids"
_VENDOR = 0x1002
_XGMI = 11  # the type of an io_link; 2 is PCIe
# Device and revision of cards whose kernel names no product, for machines without libdrm's list.
_NAMES = {
    "74a0": "AMD Instinct MI300A", "74a1": "AMD Instinct MI300X", "74a5": "AMD Instinct MI325X",
    "740c": "AMD Instinct MI250X", "740f": "AMD Instinct MI210", "738c": "AMD Instinct MI100",
    "744c/c8": "AMD Radeon RX 7900 XTX", "744c/cc": "AMD Radeon RX 7900 XT",
    "73bf/c1": "AMD Radeon RX 6800 XT", "73bf/c0": "AMD Radeon RX 6900 XT",
    "73bf/c3": "AMD Radeon RX 6800", "7550/c0": "AMD Radeon RX 9070 XT",
}  # fmt: skip
# Processors with graphics of their own. Of these only Strix Halo's is built to run models.
_INTEGRATED = {
    "gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103",
    "gfx1150", "gfx1152", "gfx1153",
}  # fmt: skip
_UNIFIED = {"gfx1151"}
# Transfers per cycle of the clock that KFD states: HBM 2, HBM3 4, GDDR6 16 (its clock is 1/16 of
# the data rate: 1250 MHz is 20 Gbit/s a pin). Others are left unknown rather than guessed.
_TRANSFERS = {
    "gfx900": 2, "gfx906": 2, "gfx908": 2, "gfx90a": 2, "gfx942": 4, "gfx1010": 16, "gfx1030": 16,
    "gfx1031": 16, "gfx1032": 16, "gfx1100": 16, "gfx1101": 16, "gfx1102": 16, "gfx1200": 16,
    "gfx1201": 16,
}  # fmt: skip


@dataclass(frozen=True)
class _Node:
    """One GPU of KFD's topology: its place there, its driver's id and its properties."""

    place: int
    gpu_id: int
    values: dict[str, int]

    @property
    def target(self) -> str:
        """The instruction set's name: 90402 is gfx942, 110000 is gfx1100."""
        version = self.values.get("gfx_target_version", 0)
        major, minor, step = version // 10000, version // 100 % 100, version % 100
        return f"gfx{major}{minor}{step:x}"

    @property
    def device(self) -> str:
        """The folder of its DRM device."""
        return f"{DRM}/renderD{self.values.get('drm_render_minor', 0)}/device"


def parse(files: Files, ram: tuple[int, int]) -> Cards:
    """The machine's AMD GPUs and their links. `ram` is (total, available) in bytes."""
    nodes = _nodes(files)
    if not nodes:
        return _without_kfd(files)
    gpus: list[Gpu] = []
    notes: list[str] = []
    places: dict[int, int] = {}
    for node in nodes:
        if node.target in _INTEGRATED:
            notes.append(f"AMD integrated GPU {node.target} shares the machine's RAM: not used")
            continue
        gpu = _gpu(files, node, len(gpus), ram)
        if gpu is None:
            notes.append(f"AMD GPU {node.target}: its memory could not be read from sysfs")
            continue
        places[node.place] = gpu.index
        gpus.append(gpu)
    return Cards(tuple(gpus), _links(files, places), tuple(notes))


def _nodes(files: Files) -> list[_Node]:
    """Nodes that compute. A GPU that this container may not use has an unreadable or zero id."""
    found: list[_Node] = []
    for name in files.names(f"{KFD}/topology/nodes"):
        folder = f"{KFD}/topology/nodes/{name}"
        gpu_id = number(files.read(f"{folder}/gpu_id"))
        values = _properties(files, folder)
        if name.isdigit() and gpu_id and values.get("simd_count"):
            found.append(_Node(int(name), gpu_id, values))
    return found


def _properties(files: Files, folder: str) -> dict[str, int]:
    read = (
        (key, number(value)) for key, value in pairs(files.read(f"{folder}/properties")).items()
    )
    return {key: value for key, value in read if value is not None}


def _gpu(files: Files, node: _Node, index: int, ram: tuple[int, int]) -> Gpu | None:
    total, used = _memory(files, node.device)
    unified = node.target in _UNIFIED
    if total is None:
        return None
    free = max(0, total - (used or 0))
    if unified:  # the carved-out part, and what the kernel lends of the rest (GTT)
        lent = number(files.read(f"{node.device}/mem_info_gtt_total")) or 0
        taken = number(files.read(f"{node.device}/mem_info_gtt_used")) or 0
        total, free = total + lent, free + min(max(0, lent - taken), ram[1])
    return Gpu(
        index=index,
        uuid=_uuid(files, node.device, node.values.get("unique_id")),
        name=_name(files, node.device, node.target),
        vendor="amd",
        vram_total=total,
        vram_free=free,
        driver=_driver(files),
        runtime_version=files.read("/opt/rocm/.info/version"),
        memory_bandwidth=_bandwidth(files, node),
        link=_pcie(files, node.device),
        unified=unified,
        architecture=node.target,
        processes=_processes(files, node.gpu_id),
    )


def _memory(files: Files, device: str) -> tuple[int | None, int | None]:
    total = number(files.read(f"{device}/mem_info_vram_total"))
    return total, number(files.read(f"{device}/mem_info_vram_used"))


def _driver(files: Files) -> str | None:
    """The module's version; the one inside the kernel has none and goes by the kernel's."""
    return files.read("/sys/module/amdgpu/version") or files.read("/proc/sys/kernel/osrelease")


def _uuid(files: Files, device: str, unique: int | None) -> str:
    """ "GPU-" and the chip's serial as ROCm prints it; the PCI address where it has none."""
    serial = files.read(f"{device}/unique_id") or (f"{unique:016x}" if unique else "")
    return f"GPU-{serial}" if serial else slot(files, device)


def slot(files: Files, device: str) -> str:
    """The PCI address of a DRM device, such as "0000:03:00.0"."""
    event = pairs(files.read(f"{device}/uevent"), "=")
    return event.get("PCI_SLOT_NAME") or device.split("/")[4]


def _name(files: Files, device: str, target: str) -> str:
    chip = (files.read(f"{device}/device") or "").lower().removeprefix("0x")
    revision = (files.read(f"{device}/revision") or "").lower().removeprefix("0x")
    for line in (files.read(IDS) or "").splitlines():
        columns = [column.strip() for column in line.split(",", 2)]
        if [column.lower() for column in columns[:2]] == [chip, revision] and columns[2:]:
            return columns[2]
    known = _NAMES.get(f"{chip}/{revision}") or _NAMES.get(chip)
    return known or files.read(f"{device}/product_name") or f"AMD GPU {chip or '?'} ({target})"


def _bandwidth(files: Files, node: _Node) -> int | None:
    """Bus width times clock of its first bank of memory, in bytes per second."""
    folder = f"{KFD}/topology/nodes/{node.place}/mem_banks/0"
    bank, transfers = _properties(files, folder), _TRANSFERS.get(node.target)
    width, clock = bank.get("width"), bank.get("mem_clk_max")
    return width // 8 * clock * 1_000_000 * transfers if width and clock and transfers else None


def _pcie(files: Files, device: str) -> str | None:
    """ "16.0 GT/s PCIe" and 16 lanes are PCIe 4.0 x16."""
    speed = (files.read(f"{device}/max_link_speed") or "").partition(" ")[0]
    width = number(files.read(f"{device}/current_link_width"))
    generation = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}.get(speed)
    return f"PCIe {generation}.0 x{width}" if generation and width else None


def _processes(files: Files, gpu_id: int) -> tuple[GpuProcess, ...]:
    found: list[GpuProcess] = []
    for pid in files.names(f"{KFD}/proc"):
        used = number(files.read(f"{KFD}/proc/{pid}/vram_{gpu_id}"))
        if pid.isdigit() and used:
            name = files.read(f"/proc/{pid}/comm")
            found.append(GpuProcess(pid=int(pid), name=name, used=used))
    return tuple(found)


def _links(files: Files, places: dict[int, int]) -> tuple[GpuLink, ...]:
    """Every pair once: xGMI where KFD says so, PCIe where peers reach each other, else the CPU."""
    kinds: dict[tuple[int, int], int] = {}
    for place in places:
        for kind in ("io_links", "p2p_links"):
            folder = f"{KFD}/topology/nodes/{place}/{kind}"
            for name in files.names(folder):
                link = _properties(files, f"{folder}/{name}")
                pair = (link.get("node_from", -1), link.get("node_to", -1))
                kinds[pair] = max(kinds.get(pair, 0), link.get("type", 0))
    found: list[GpuLink] = []
    for a, index in places.items():
        for b, other in places.items():
            if index < other:
                link_type = max(kinds.get((a, b), 0), kinds.get((b, a), 0))
                found.append(
                    GpuLink(
                        a=index,
                        b=other,
                        kind="xgmi" if link_type == _XGMI else "pcie" if link_type else "cpu",
                    )
                )
    return tuple(found)


def _without_kfd(files: Files) -> Cards:
    """Cards that show pictures only are no accelerators: notes, no GPUs."""
    notes: list[str] = []
    for name in files.names(DRM):
        device = f"{DRM}/{name}/device"
        if not name.removeprefix("card").isdigit():
            continue
        vendor, (total, _) = number(files.read(f"{device}/vendor"), 0), _memory(files, device)
        if vendor == _VENDOR and total is not None:
            label = _name(files, device, "unknown target")
            notes.append(f"{label}: the kernel offers no KFD, so ROCm cannot use it; left out")
    return Cards(notes=tuple(notes))
