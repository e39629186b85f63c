"""Apple silicon, and Macs at large, from what `sysctl` and `system_profiler` print. Pure."""

from __future__ import annotations

import json

from engine_launchers.machine import Gpu
from orchestrator.hardware import cpu
from orchestrator.hardware.files import number, pairs
from orchestrator.hardware.nvml import Cards

SYSCTL = ("sysctl", "-a")
DISPLAYS = ("system_profiler", "SPDisplaysDataType", "-json")
# Linux's name of a feature by sysctl's, on Arm
_ARM = {
    "hw.optional.AdvSIMD": "asimd", "hw.optional.neon": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}  # fmt: skip
_INTEL = {"AVX1.0": "avx", "AVX2": "avx2", "AVX512F": "avx512f", "FMA": "fma", "F16C": "f16c"}


def settings(text: str) -> dict[str, str]:
    """`sysctl`'s "name: value" lines as a mapping."""
    return pairs(text, ":")


def cores(values: dict[str, str]) -> cpu.Cores | None:
    """Performance cores of Apple silicon, physical cores of an Intel Mac; None if unnamed."""
    fast, slow = (number(values.get(f"hw.perflevel{n}.physicalcpu")) for n in (0, 1))
    if fast and slow:
        words = f"{fast} performance cores counted, {slow} efficiency cores left out"
        return cpu.Cores(fast, (words,))
    count = fast or number(values.get("hw.physicalcpu"))
    return cpu.Cores(count) if count else None


def instruction_sets(values: dict[str, str]) -> tuple[str, ...]:
    """As `cpu.instruction_sets`. NEON is part of every Apple chip, though not always listed."""
    flags = [name for key, name in _ARM.items() if values.get(key) == "1"]
    listed = f"{values.get('machdep.cpu.features')} {values.get('machdep.cpu.leaf7_features')}"
    flags += [_INTEL[word] for word in listed.split() if word in _INTEL]
    if values.get("machdep.cpu.brand_string", "").startswith("Apple"):
        flags.append("asimd")
    return cpu.named(flags)


def parse(values: dict[str, str], displays: str, ram: tuple[int, int]) -> Cards:
    """The GPU of Apple silicon, in the machine's RAM; other GPUs of a Mac are noted only.

    Its memory is what Metal recommends as working set, which is what macOS lets a GPU wire.
    """
    brand = values.get("machdep.cpu.brand_string", "")
    listed = _listed(displays)
    notes = () if listed is not None else ("system_profiler's list of GPUs could not be read",)
    if not brand.startswith("Apple"):
        unused = tuple(f"{name}: GPUs of Intel Macs are not used" for name in listed or {})
        return Cards(notes=notes + unused if brand else ("sysctl did not name the processor",))
    window = working_set(ram[0], number(values.get("iogpu.wired_limit_mb")) or 0)
    version = values.get("kern.osproductversion")
    gpu = Gpu(
        index=0,
        uuid="apple-0",
        name=brand,
        vendor="apple",
        vram_total=window,
        vram_free=min(window, ram[1]),
        driver=f"macOS {version}" if version else None,
        unified=True,
        cores=number((listed or {}).get(brand)),
    )
    return Cards((gpu,), (), notes)


def _listed(displays: str) -> dict[str, str] | None:
    """The GPUs that `system_profiler` lists and their cores ("" for other makers'), or None."""
    try:
        found = json.loads(displays)["SPDisplaysDataType"]
        return {str(item["sppci_model"]): str(item.get("sppci_cores", "")) for item in found}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def working_set(ram: int, wired_limit_mb: int) -> int:
    """Bytes that the GPU may wire: the limit that was set, else macOS' share of the RAM.

    Two thirds up to 32 GiB, three quarters above: Metal reports 11453 MB of 16 GiB, 22907 MB of
    32 GiB, 51540 MB of 64 GiB, 154619 MB of 192 GiB.
    """
    if wired_limit_mb > 0:
        return min(ram, wired_limit_mb * 2**20)
    return ram * 2 // 3 if ram <= 32 * 2**30 else ram * 3 // 4
