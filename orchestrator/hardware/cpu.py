"""Physical cores and instruction sets from `/proc/cpuinfo`. Pure: text in, values out."""

from __future__ import annotations

_ISA = {
    "avx": "AVX", "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI",
    "amx_tile": "AMX", "fma": "FMA", "f16c": "F16C", "asimd": "NEON", "sve": "SVE",
}  # fmt: skip


def blocks(cpuinfo: str) -> list[dict[str, str]]:
    """One mapping per logical processor of `/proc/cpuinfo`."""
    found: list[dict[str, str]] = []
    for block in cpuinfo.strip().split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        record = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in record:
            found.append(record)
    return found


def physical_cores(cpuinfo: str, allowed: frozenset[int]) -> int:
    """Distinct (socket, core) pairs among the `allowed` logical processors, at least 1.

    Where the file names no cores (ARM, some virtual machines) every logical processor counts.
    """
    cores: set[tuple[str, str]] = set()
    for record in blocks(cpuinfo):
        number = record["processor"]
        if number.isdigit() and int(number) in allowed:
            core = record.get("core id", f"logical {number}")
            cores.add((record.get("physical id", "0"), core))
    return max(1, len(cores) or len(allowed))


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Names of the instruction sets that matter to inference, in a fixed order."""
    records = blocks(cpuinfo)
    if not records:
        return ()
    flags = set((records[0].get("flags") or records[0].get("Features") or "").split())
    return tuple(name for flag, name in _ISA.items() if flag in flags)
