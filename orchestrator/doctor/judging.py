"""From what was seen to what is wrong with it, and the remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.doctor.facts import Disk, Facts, Memory, Place, PortUse
from orchestrator.engines.findings import Finding

GIB = 2**30
_LITTLE_RAM = GIB
_LITTLE_SHM = GIB  # what tensor parallel ranks of one engine take is well below


def judge(facts: Facts) -> tuple[Finding, ...]:
    """Every finding, in the order of the checks."""
    return (
        *_devices(facts),
        *_memory(facts.memory, len(facts.hardware.gpus)),
        *(_disk(each) for each in facts.disks),
        *(_place(each) for each in facts.places),
        _gateway(facts.compiled, facts.stale),
        *_server(facts),
        *(_port(each) for each in facts.ports),
        *_left(facts),
    )


def _ok(about: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(about=about, level="ok", text=text)


def _note(about: str, text: str, remedy: str = "") -> Finding:
    return Finding(about=about, level="note", text=text, remedy=remedy)


def _wrong(about: str, text: str, remedy: str) -> Finding:
    return Finding(about=about, level="wrong", text=text, remedy=remedy)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _devices(facts: Facts) -> Iterator[Finding]:
    gpus = facts.hardware.gpus
    for gpu in gpus:
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        told = f"{gpu.name}, {_gib(gpu.vram_free)} free of {_gib(gpu.vram_total)}{driver}"
        yield _ok(f"gpu {gpu.index}", told)
    for device in facts.devices:
        if not device.usable:
            yield _wrong(
                device.path,
                "this user may not open it",
                "add the user to the group that owns it (`ls -l`), then log in again",
            )
    blind = facts.nvidia and not any(gpu.vendor == "nvidia" for gpu in gpus)
    for note in facts.hardware.notes:
        if blind and "NVIDIA" in note:
            yield _wrong(
                "driver", note, "see that `nvidia-smi` lists the card; containers need `--gpus all`"
            )
        else:
            yield _note("hardware", note)
    if blind and not any("NVIDIA" in note for note in facts.hardware.notes):
        yield _note("driver", "NVIDIA cards are hidden from this process by its environment")
    if not gpus:
        yield _note("gpu", "none can be used: engines run on the processor")


def _memory(memory: Memory, gpus: int) -> Iterator[Finding]:
    told = f"{_gib(memory.available)} available of {_gib(memory.total)}"
    if memory.available < _LITTLE_RAM:
        cure = "end other programs, or take a smaller model: `engineroom plan` shows what fits"
        yield _wrong("memory", told, cure)
    else:
        yield _ok("memory", told)
    if memory.limit is not None:
        cure = "raise the container's or service's memory limit where models do not fit"
        yield _note("control group", f"limits memory to {_gib(memory.limit)}", cure)
    if memory.swap_used > max(GIB, memory.total // 10):
        cure = "end what holds the memory: an engine that is swapped out answers slowly"
        yield _wrong("swap", f"{_gib(memory.swap_used)} of {_gib(memory.swap_total)} used", cure)
    elif memory.swap_total:
        yield _ok("swap", f"{_gib(memory.swap_used)} of {_gib(memory.swap_total)} used")
    else:
        yield _ok("swap", "none: the kernel ends a process when memory runs out")
    if memory.shm is None:
        told = "there is no /dev/shm: engines over several GPUs need it"
        yield _note("shared memory", told, "mount a tmpfs there")
    elif memory.shm < _LITTLE_SHM:
        cure = "give the container `--shm-size=8g`, or `--ipc=host`"
        level = _wrong if gpus > 1 else _note
        yield level("shared memory", f"{_gib(memory.shm)}: too small for several GPUs", cure)
    else:
        yield _ok("shared memory", _gib(memory.shm))


def _disk(disk: Disk) -> Finding:
    told = f"{_gib(disk.free)} free on the disk of {disk.path}"
    if disk.free < disk.least:
        return _wrong(disk.what, told, f"free {_gib(disk.least)}, or set another folder")
    return _ok(disk.what, told)


def _place(place: Place) -> Finding:
    if place.mode is None:
        return _ok(place.what, f"{place.path}: not made yet")
    if not place.mine:
        cure = f"run: chown {'-R ' if place.what.endswith('folder') else ''}$USER {place.path}"
        return _wrong(place.what, f"{place.path}: belongs to another user", cure)
    if place.private and place.mode & 0o077:
        wanted = "700" if place.what.endswith("folder") else "600"
        told = f"{place.path}: others may read it (mode {place.mode & 0o777:o})"
        return _wrong(place.what, told, f"run: chmod {wanted} {place.path}")
    if not place.writable:
        cure = "make it writable, or set another folder: state would be kept in memory only"
        return _wrong(place.what, f"{place.path}: cannot be written", cure)
    return _ok(place.what, place.path)


def _gateway(compiled: int, stale: tuple[str, ...]) -> Finding:
    if stale:
        told = f"{len(stale)} of its compiled modules have another source now ({stale[0]})"
        return _wrong("gateway", told, "run: make compiled")
    if compiled:
        return _ok("gateway", f"{compiled} of its modules are compiled")
    return _ok("gateway", "runs in plain Python: nothing of it is compiled")


def _server(facts: Facts) -> Iterator[Finding]:
    server = facts.server
    if server.pid is None:
        if server.admin:
            cure = "`engineroom serve` adopts what still runs"
            yield _note("server", "none runs, and the last one did not end in an orderly way", cure)
        else:
            yield _ok("server", "none runs")
    elif server.trouble:
        yield _wrong(
            "server",
            f"runs (pid {server.pid}), and cannot be asked: {server.trouble}",
            f"wait while it starts; else `kill {server.pid}`, then `engineroom serve`: it adopts "
            "what runs",
        )
    else:
        yield _ok("server", f"runs (pid {server.pid}), answers at {server.admin}")
    if server.degraded:
        yield _wrong(
            "state",
            "the running server keeps its state in memory only",
            "free the disk of the data folder, or make it writable; the server then writes again",
        )
    if facts.state:
        cure = "nothing needs doing: the next start keeps it aside and makes it again"
        yield _note("state", f"the state file cannot be used: {facts.state}", cure)


def _port(port: PortUse) -> Finding:
    if port.trouble is None:
        return _ok(port.name, f"{port.address} is free")
    holder = f" ({port.holder})" if port.holder else ""
    if port.ours:
        return _ok(port.name, f"{port.address} is ours{holder}")
    cure = f"end what holds it, or set another {port.name}; 0 takes any free one"
    return _wrong(port.name, f"{port.address}: {port.trouble}{holder}", cure)


def _left(facts: Facts) -> Iterator[Finding]:
    """Processes and files of ours that nobody looks after."""
    for process in facts.running:
        about = f"{process.name} (pid {process.pid})"
        if not process.watched:
            yield _wrong(about, "runs without its shim", f"run: kill -9 -{process.pid}")
        elif facts.server.pid is None:
            yield _wrong(
                about,
                "runs without a supervisor",
                f"`engineroom serve` adopts it; else its lease ends it within {facts.lease_s:g} s",
            )
    if facts.sockets and facts.server.pid is None and not facts.running:
        yield _note("sockets", f"{facts.sockets}: left behind", f"run: rm -r {facts.sockets}")
    for path in facts.broken:
        yield _note("state", f"{path}: a damaged state file is kept", "delete it when you like")
