"""Intel GPUs, best effort: discrete cards from DRM's sysfs. Pure.

Neither kernel driver (i915, xe) tells an unprivileged reader how much memory is free, and only some
versions tell how much there is; else the size of the PCI window onto it counts, which is the whole
memory where resizable BAR is on. Integrated graphics share the RAM and are only noted.
"""

from __future__ import annotations

from engine_launchers.machine import Gpu
from orchestrator.hardware.amd import DRM, slot
from orchestrator.hardware.files import Files, number
from orchestrator.hardware.nvml import Cards

_VENDOR = 0x8086
_INTEGRATED_SLOT = "0000:00:02.0"
# PCI device: name, memory in GiB, bandwidth in GB/s as Intel states them (ark.intel.com)
_KNOWN = {
    0x56A0: ("Intel Arc A770 Graphics", None, 560), 0x56A1: ("Intel Arc A750 Graphics", 8, 512),
    0x56A5: ("Intel Arc A380 Graphics", 6, 186), 0x56A6: ("Intel Arc A310 Graphics", 4, 124),
    0xE20B: ("Intel Arc B580 Graphics", 12, 456), 0xE20C: ("Intel Arc B570 Graphics", 10, 380),
    0xE211: ("Intel Arc Pro B60 Graphics", 24, 456),
    0x0BD5: ("Intel Data Center GPU Max 1550", 128, 3277),
    0x0BDA: ("Intel Data Center GPU Max 1100", 48, 1229),
}  # fmt: skip
_SMALLEST = 1 << 30  # a smaller window is the 256 MiB one of a machine without resizable BAR


def parse(files: Files) -> Cards:
    """The machine's discrete Intel GPUs, with a note on what is not known of each."""
    gpus: list[Gpu] = []
    notes: list[str] = []
    for name in files.names(DRM):
        device = f"{DRM}/{name}/device"
        if not name.removeprefix("card").isdigit():
            continue
        if number(files.read(f"{device}/vendor"), 0) != _VENDOR:
            continue
        if slot(files, device) == _INTEGRATED_SLOT:
            notes.append("Intel integrated GPU shares the machine's RAM: not used")
            continue
        chip = number(files.read(f"{device}/device"), 0) or 0
        label, gib, rate = _KNOWN.get(chip, (f"Intel GPU {chip:04x}", None, None))
        total = _memory(files, name) or (gib and gib << 30) or _window(files, device)
        if total is None:
            notes.append(f"{label}: its memory could not be read: left out")
            continue
        gpus.append(
            Gpu(
                index=len(gpus),
                uuid=slot(files, device),
                name=label,
                vendor="intel",
                vram_total=total,
                vram_free=total,
                driver=files.read("/proc/sys/kernel/osrelease"),
                memory_bandwidth=rate and rate * 10**9,
            )
        )
        notes.append(f"{label}: the driver does not tell free memory; all of it is taken as free")
    return Cards(tuple(gpus), (), tuple(notes))


def _memory(files: Files, card: str) -> int | None:
    """What the driver states: i915's local memory, or the sum over xe's tiles."""
    for path in ("lmem_total_bytes", "prelim_lmem_total_bytes", "device/lmem_total_bytes"):
        total = number(files.read(f"{DRM}/{card}/{path}"))
        if total:
            return total
    tiles = (
        number(files.read(f"{DRM}/{card}/device/{name}/physical_vram_size_bytes"), 0)
        for name in files.names(f"{DRM}/{card}/device")
        if name.startswith("tile")
    )
    return sum(tile for tile in tiles if tile) or None


def _window(files: Files, device: str) -> int | None:
    """The largest PCI region; each line of `resource` is first address, last address, flags."""
    sizes = [0]
    for line in (files.read(f"{device}/resource") or "").splitlines():
        first, last = (number(part, 0) for part in [*line.split(), "0", "0"][:2])
        if first and last:
            sizes.append(last - first + 1)
    return max(sizes) if max(sizes) >= _SMALLEST else None
