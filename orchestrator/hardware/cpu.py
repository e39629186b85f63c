"""Processor, physical cores, instruction sets, NUMA nodes and RAM, from what Linux shows of them.

Pure: files in, values out. Other systems are read by `apple.py` and, in `facts.py`, psutil.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.hardware.files import Files, cpu_list, number, pairs

_ISA = {
    "avx": "AVX", "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16", "avx_vnni": "AVX-VNNI", "amx_tile": "AMX", "fma": "FMA",
    "f16c": "F16C", "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "I8MM", "bf16": "BF16",
    "sve": "SVE", "sve2": "SVE2",
}  # fmt: skip
# (implementer, part) of Arm's main ID register, as the kernel prints it.
_ARM = {
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd05"): "Cortex-A55", ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd85"): "Cortex-X925", ("0x41", "0xd87"): "Cortex-A725",
    ("0xc0", "0xac3"): "Ampere-1",
}  # fmt: skip
_SLOW_CORE = 0.6  # share of the fastest core's capacity below which a core only holds others up
CPUS = "/sys/devices/system/cpu"
NODES = "/sys/devices/system/node"


@dataclass(frozen=True)
class Cores:
    """Physical cores that compute well together, and notes on those left out."""

    count: int
    notes: tuple[str, ...] = ()


def blocks(cpuinfo: str) -> list[dict[str, str]]:
    """One mapping per logical processor of `/proc/cpuinfo`."""
    found: list[dict[str, str]] = []
    for block in cpuinfo.strip().split("\n\n"):
        record = pairs(block, ":")
        if record.get("processor", "").isdigit():
            found.append(record)
    return found


def physical_cores(cpuinfo: str, allowed: frozenset[int]) -> int:
    """Distinct (socket, core) pairs among the `allowed` logical processors, at least 1.

    Where the file names no cores (ARM, some virtual machines) every logical processor counts.
    """
    cores: set[tuple[str, str]] = set()
    for record in blocks(cpuinfo):
        number = record["processor"]
        if int(number) in allowed:
            core = record.get("core id", f"logical {number}")
            cores.add((record.get("physical id", "0"), core))
    return max(1, len(cores) or len(allowed))


def usable_cores(files: Files, allowed: frozenset[int] | None) -> Cores:
    """The cores that an engine should use: fast ones only where the machine has two kinds.

    An engine splits each step evenly over its threads, so one slow core delays all. `allowed` are
    the logical processors of this process's affinity, None for all.
    """
    cpuinfo = files.read("/proc/cpuinfo") or ""
    mine = frozenset(int(r["processor"]) for r in blocks(cpuinfo))
    if allowed is not None:
        mine = mine & allowed if mine & allowed else allowed
    fast = mine & _fast(files, mine)
    whole = physical_cores(cpuinfo, mine)
    if not fast or fast == mine:
        return Cores(whole)
    count = physical_cores(cpuinfo, fast)
    slow = physical_cores(cpuinfo, mine - fast)
    return Cores(count, (f"{count} performance cores counted, {slow} efficiency cores left out",))


def _fast(files: Files, mine: frozenset[int]) -> frozenset[int]:
    """The performance cores of an Intel hybrid or an Arm big.LITTLE; all of them elsewhere."""
    intel = cpu_list(files.read("/sys/devices/cpu_core/cpus"))
    if intel:
        return intel
    read = {n: number(files.read(f"{CPUS}/cpu{n}/cpu_capacity")) for n in mine}
    capacities = {n: value for n, value in read.items() if value}
    if len(capacities) < len(mine):
        return mine
    top = max(capacities.values(), default=0)
    return frozenset(n for n, value in capacities.items() if value >= _SLOW_CORE * top)


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Names of the instruction sets that matter to inference, in a fixed order."""
    records = blocks(cpuinfo)
    if not records:
        return ()
    return named((records[0].get("flags") or records[0].get("Features") or "").split())


def named(flags: list[str]) -> tuple[str, ...]:
    """Linux's names of processor features as the names used here, in a fixed order."""
    return tuple(name for flag, name in _ISA.items() if flag in flags)


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's name; on ARM the kinds of core, and the board where it is named."""
    records = blocks(cpuinfo)
    for record in records:
        if record.get("model name"):
            return record["model name"]
    kinds = {_ARM.get((r.get("CPU implementer", ""), r.get("CPU part", ""))): None for r in records}
    cores = " + ".join(kind for kind in kinds if kind)
    board = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line[:5] == "Model"),
        "",
    )
    return f"{board} ({cores})" if board and cores else board or cores or None


def numa_nodes(files: Files, allowed: frozenset[int] | None) -> int:
    """Nodes with processors that this process may use, at least 1.

    Memory without processors (a GPU's memory on Grace, CXL) is no place to run threads on.
    """
    lists = (
        cpu_list(files.read(f"{NODES}/{name}/cpulist"))
        for name in files.names(NODES)
        if name.startswith("node") and name[4:].isdigit()
    )
    return max(1, sum(bool(cpus if allowed is None else cpus & allowed) for cpus in lists))


def memory(files: Files) -> tuple[int, int] | None:
    """(total, available) bytes of `/proc/meminfo`, None where there is no such file."""
    values = pairs(files.read("/proc/meminfo"), ":")
    kib = {key: number(value.removesuffix("kB").strip()) for key, value in values.items()}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    if not total:
        return None
    if available is None:  # kernels before 3.14, and some sandboxes
        free, cached = kib.get("MemFree") or 0, kib.get("Cached") or 0
        available = free + max(0, cached - (kib.get("Shmem") or 0))
    return total * 1024, min(total, available) * 1024
