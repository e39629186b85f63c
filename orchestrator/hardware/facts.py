"""From everything that was read of one machine to its HardwareProfile. Pure.

`probe.py` collects a `Facts` here and now; tests build one from the recording of another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine_launchers.machine import HardwareProfile
from orchestrator.hardware import amd, apple, cpu, intel, nvml, visible
from orchestrator.hardware.cgroup import Limits, cgroup_limits
from orchestrator.hardware.files import Files
from orchestrator.hardware.nvml import Cards


@dataclass(frozen=True)
class Facts:
    """What one machine says of itself, before anything is decided.

    `system` and `machine` are `platform`'s words in lower case. `nvml` is the document of
    `nvml_child.py`, or in words why there is none. `allowed` is this process's affinity, None
    where the system has no such thing. `ram` is (total, available) in bytes, `cores` physical
    cores and `isa` instruction sets, for systems without Linux's files. `sysctl` and `displays`
    are what a Mac's two programs print.
    """

    files: Files
    system: str
    machine: str
    nvml: dict[str, Any] | str
    ram: tuple[int, int]
    env: Mapping[str, str]
    allowed: frozenset[int] | None = None
    cores: int | None = None
    isa: tuple[str, ...] = ()
    sysctl: str = ""
    displays: str = ""


def assemble(facts: Facts) -> HardwareProfile:
    """The profile, without the memory bandwidth, which is measured and not read."""
    notes: list[str] = []
    cpuinfo = facts.files.read("/proc/cpuinfo") or ""
    values = apple.settings(facts.sysctl)
    limits = _limits(facts)
    ram = _memory(facts, limits, notes)
    cards = _cards(facts, values, ram)
    cores = _cores(facts, values, limits, notes)
    isa = cpu.instruction_sets(cpuinfo) or apple.instruction_sets(values) or facts.isa
    if not isa:
        notes.append("instruction sets of this processor could not be read")
    return HardwareProfile(
        gpus=cards.gpus,
        links=cards.links,
        ram_total=ram[0],
        ram_available=ram[1],
        cpu_cores=cores,
        cpu_name=cpu.cpu_name(cpuinfo) or values.get("machdep.cpu.brand_string"),
        numa_nodes=cpu.numa_nodes(facts.files, facts.allowed),
        isa=isa,
        platform=f"{facts.system}-{facts.machine}",
        notes=(*cards.notes, *notes),
    )


def _limits(facts: Facts) -> Limits:
    membership = facts.files.read("/proc/self/cgroup")
    return cgroup_limits(facts.files, membership) if membership else Limits()


def _memory(facts: Facts, limits: Limits, notes: list[str]) -> tuple[int, int]:
    """(total, available): the host's, or less where a control group is tighter."""
    total, available = cpu.memory(facts.files) or facts.ram
    if limits.memory_limit is not None and 0 < limits.memory_limit < total:
        notes.append(f"memory limited by cgroup to {limits.memory_limit / 2**30:.1f} GiB")
        total = limits.memory_limit
    if limits.memory_free is not None:
        available = min(available, limits.memory_free)
    return total, min(total, available)


def _cores(facts: Facts, values: dict[str, str], limits: Limits, notes: list[str]) -> int:
    """Physical cores after affinity, kind of core and quota, at least 1."""
    if facts.system == "linux":
        cores = cpu.usable_cores(facts.files, facts.allowed)
        if facts.files.read("/proc/cpuinfo") is None:
            notes.append("/proc/cpuinfo could not be read: every logical processor counts as one")
    else:
        cores = apple.cores(values) or cpu.Cores(max(1, facts.cores or 1))
    notes += cores.notes
    if limits.cpus is not None and limits.cpus < cores.count:
        notes.append(f"cores limited by cgroup to {limits.cpus:g} processors' time")
        return max(1, int(limits.cpus))
    return cores.count


def _cards(facts: Facts, values: dict[str, str], ram: tuple[int, int]) -> Cards:
    """All vendors' GPUs, after the variables that hide some. Indices count per vendor."""
    if facts.system == "darwin":
        return apple.parse(values, facts.displays, ram)
    if isinstance(facts.nvml, str):
        nvidia = Cards(notes=(facts.nvml,))
    else:
        nvidia = visible.cuda(nvml.parse(facts.nvml, ram), facts.env)
    env = dict(facts.env)
    if not isinstance(facts.nvml, str):  # there it is meant for the NVIDIA cards
        env.pop("CUDA_VISIBLE_DEVICES", None)
    radeon = visible.rocm(_sound("AMD", lambda: amd.parse(facts.files, ram)), env)
    arc = _sound("Intel", lambda: intel.parse(facts.files))
    found = [cards for cards in (nvidia, radeon, arc) if cards.gpus]
    notes = (*nvidia.notes, *radeon.notes, *arc.notes)
    if len(found) > 1:
        notes = (*notes, "GPUs of several vendors: their indices count for each vendor apart")
    return Cards(
        tuple(gpu for cards in found for gpu in cards.gpus),
        tuple(link for cards in found for link in cards.links),
        notes,
    )


def _sound(vendor: str, parse: Callable[[], Cards]) -> Cards:
    """The cards, or a note where sysfs states what cannot be, such as negative memory."""
    try:
        return parse()
    except ValueError as error:
        first = str(error).splitlines()[0]
        return Cards(notes=(f"{vendor} GPUs: sysfs could not be understood: {first}",))
