"""Memory bandwidth as a threaded read kernel reaches it, measured once per boot.

Decoding reads every weight once per token, so what counts is how fast all cores together can
read. The kernel is the C library's `memcmp` over two equal halves of a buffer far larger than the
caches: it only reads, releases the GIL, and runs within a few per cent of a vectorised sum in C
(docs/explanation/measurements.md), with no compiler and no numpy. A sum by numpy is bound by
computing, a triad also writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import platform
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_MIB = 1 << 20
_SHARE = 16  # of the available memory, one part may be taken for a moment
_TOTAL_MOST = 1024 * _MIB
_EACH_MOST, _EACH_LEAST = 128 * _MIB, 16 * _MIB
_THREADS_MOST = 64
_PASSES_LEAST = 4
_BUDGET_S = 0.3
_UNDISTURBED = 0.9  # share of the cores' time that the best pass must have had
_METHOD = 1  # of the cache file; a change of the kernel makes old figures void
_FILE = "memory-bandwidth.json"


@dataclass(frozen=True)
class Measured:
    """`rate` in bytes per second, or None with the reason in `note`.

    `quiet` says that other work did not take the cores away during the best pass.
    """

    rate: int | None = None
    note: str | None = None
    quiet: bool = True


@dataclass
class _Clock:
    """Notes when all threads have arrived; enough passes and enough time end the run."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def tick(self) -> None:
        self.walls.append(time.perf_counter())
        self.cpus.append(time.process_time())

    @property
    def done(self) -> bool:
        return len(self.walls) > _PASSES_LEAST and self.walls[-1] - self.walls[0] > _BUDGET_S

    @property
    def best(self) -> tuple[float, float]:
        """Seconds of the fastest pass, and processors' time spent in it."""
        last = range(1, len(self.walls))
        return min(
            (self.walls[i] - self.walls[i - 1], self.cpus[i] - self.cpus[i - 1]) for i in last
        )


def buffer_size(threads: int, available: int) -> int | None:
    """Bytes for each thread's buffer; None where RAM is too short for an honest measurement."""
    each = min(_EACH_MOST, min(_TOTAL_MOST, available // _SHARE) // threads)
    return each // mmap.PAGESIZE * mmap.PAGESIZE if each >= _EACH_LEAST else None


def measure(cores: int, available: int) -> Measured:
    """Read with one thread per core, the best of several passes; about half a second.

    `available` is RAM that may be taken, in bytes. Other work on the machine lowers the figure;
    the best pass is the least disturbed one.
    """
    if platform.libc_ver()[0] != "glibc" and platform.system() != "Darwin":
        return Measured(note="memory bandwidth not measured: this C library has no fast memcmp")
    threads = min(cores, _THREADS_MOST)
    size = buffer_size(threads, available)
    if size is None:
        return Measured(note="memory bandwidth not measured: too little RAM is free")
    try:
        buffers = [mmap.mmap(-1, size) for _ in range(threads)]
    except OSError as error:
        return Measured(note=f"memory bandwidth not measured: {error.strerror}")
    clock = _Clock()
    barrier = threading.Barrier(threads, action=clock.tick)
    workers = [
        threading.Thread(target=_read, args=(buffer, size, barrier, clock), daemon=True)
        for buffer in buffers
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall, spent = clock.best
    return Measured(rate=int(threads * size / wall), quiet=spent >= _UNDISTURBED * threads * wall)


def _read(buffer: mmap.mmap, size: int, barrier: threading.Barrier, clock: _Clock) -> None:
    """Fill (each thread its own part, so that it lies on its NUMA node), then read until done."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # a kernel without huge pages refuses: address translation then costs a few per cent
        with contextlib.suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    compare = ctypes.CDLL(None).memcmp
    compare.restype = ctypes.c_int
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    ctypes.memset(address, 1, size)
    barrier.wait()
    while not clock.done:
        compare(address, address + size // 2, size // 2)
        barrier.wait()


def boot_id() -> str:
    """What changes with every boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"booted {int(psutil.boot_time()) // 60}"


def cached(folder: Path, boot: str, cores: int, available: int) -> Measured:
    """The figure of this boot for this many cores, from `folder` or measured and kept there.

    One taken while other work held the cores is too low: it is kept, but measured again the next
    time, and the better one stays. A damaged or outdated file is measured again. A folder that
    cannot be written is a note.
    """
    path, key = folder / _FILE, {"method": _METHOD, "boot": boot, "cores": cores}
    kept = _kept(path, key)
    if kept is not None and kept.quiet:
        return kept
    found = measure(cores, available)
    if found.rate is None:
        return found if kept is None else kept
    if kept is not None and kept.rate is not None and kept.rate > found.rate:
        found = Measured(kept.rate, quiet=found.quiet)
    try:
        _keep(path, {**key, "bytes_per_second": found.rate, "quiet": found.quiet})
    except OSError as error:
        note = f"memory bandwidth not kept in {path}: {error.strerror}"
        return Measured(found.rate, note, found.quiet)
    return found


def _kept(path: Path, key: dict[str, object]) -> Measured | None:
    try:
        document = json.loads(path.read_text())
        rate, quiet = document.pop("bytes_per_second"), document.pop("quiet")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    if document != key or not isinstance(rate, int) or rate <= 0:
        return None
    return Measured(rate, quiet=quiet is True)


def _keep(path: Path, document: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        json.dump(document, file)
    Path(name).replace(path)
