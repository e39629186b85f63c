"""CPU and memory limits of control groups, v1 and v2, over the whole chain of ancestors.

`cgroup_limits` reads files below a root that tests may replace; `parse_membership` is pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # v1 reports "no limit" as a page-rounded 2^63-1


@dataclass(frozen=True)
class Limits:
    """`cpus` is processors' worth of time; `memory_free` is bytes that may still be taken."""

    cpus: float | None = None
    memory_limit: int | None = None
    memory_free: int | None = None


def parse_membership(text: str) -> dict[str, str]:
    """Controller to path from `/proc/self/cgroup`; the v2 path stands under the empty name."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def cgroup_limits(root: Path, membership: str) -> Limits:
    """The tightest limits on the way from this process's groups up to `root` (/sys/fs/cgroup)."""
    paths = parse_membership(membership)
    found: list[Limits] = []
    for base in (root, root / "unified"):
        found += [_v2(group) for group in _chain(base, paths.get("", "/"))]
    for base in (root / "cpu", root / "cpu,cpuacct"):
        found += [_v1_cpu(group) for group in _chain(base, paths.get("cpu", "/"))]
    found += [_v1_memory(group) for group in _chain(root / "memory", paths.get("memory", "/"))]
    return Limits(
        cpus=min((x.cpus for x in found if x.cpus is not None), default=None),
        memory_limit=_least(x.memory_limit for x in found),
        memory_free=_least(x.memory_free for x in found),
    )


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _chain(base: Path, path: str) -> list[Path]:
    parts = PurePosixPath(path).parts[1:]
    folders = [base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the controller is absent in this group: it sets no limit here
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    value = int(text) if text.lstrip("-").isdigit() else None
    return None if value is None or value < 0 or value >= _UNLIMITED else value


def _stat(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _v2(group: Path) -> Limits:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    cpus = int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    cache = _stat(group / "memory.stat", "inactive_file")
    return Limits(cpus, limit, _free(limit, used, cache))


def _v1_cpu(group: Path) -> Limits:
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return Limits(cpus=quota / period if quota and period else None)


def _v1_memory(group: Path) -> Limits:
    limit = _number(group / "memory.limit_in_bytes")
    used = _number(group / "memory.usage_in_bytes")
    cache = _stat(group / "memory.stat", "total_inactive_file")
    return Limits(memory_limit=limit, memory_free=_free(limit, used, cache))


def _free(limit: int | None, used: int | None, reclaimable: int) -> int | None:
    """Room below a limit; the file cache that the kernel would drop does not count as used."""
    if limit is None:
        return None
    return max(0, limit - max(0, (used or 0) - reclaimable))
