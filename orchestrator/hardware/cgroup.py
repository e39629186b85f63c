"""CPU and memory limits of control groups, v1 and v2, over the whole chain of ancestors.

The tightest limit on the way from this process's groups to the mounted root counts. A container
with a namespace of its own sees its own group as the root; there the ancestors cannot be read,
except v1's `hierarchical_memory_limit`, which sums them up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.hardware.files import Files, number, pairs

ROOT = "/sys/fs/cgroup"
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
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def cgroup_limits(files: Files, membership: str, root: str = ROOT) -> Limits:
    """The tightest limits on the way from this process's groups up to `root`."""
    paths = parse_membership(membership)
    found: list[Limits] = []
    for base in (root, f"{root}/unified"):
        found += [_v2(files, group) for group in _chain(base, paths.get("", "/"))]
    for name in ("cpu", "cpu,cpuacct", "cpuacct,cpu"):
        found += [_v1_cpu(files, g) for g in _chain(f"{root}/{name}", paths.get("cpu", "/"))]
    memory = _chain(f"{root}/memory", paths.get("memory", "/"))
    found += [_v1_memory(files, group) for group in memory]
    return Limits(
        cpus=min((x.cpus for x in found if x.cpus is not None), default=None),
        memory_limit=_least(x.memory_limit for x in found),
        memory_free=_least(x.memory_free for x in found),
    )


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _chain(base: str, path: str) -> list[str]:
    """A group and its ancestors up to `base`. A group that is not mounted here reads as empty."""
    parts = PurePosixPath(path).parts[1:]
    if ".." in parts:  # it lies outside this namespace; the mounted root is all that can be seen
        parts = ()
    return ["/".join((base, *parts[:depth])) for depth in range(len(parts), -1, -1)]


def _limit(text: str | None) -> int | None:
    value = number(text)
    return None if value is None or value < 0 or value >= _UNLIMITED else value


def _cpus(quota: int | None, period: int | None) -> float | None:
    """Processors' worth of time, from microseconds per period; "max" and -1 are no limit."""
    return quota / period if quota and period else None


def _v2(files: Files, group: str) -> Limits:
    quota, _, period = (files.read(f"{group}/cpu.max") or "").partition(" ")
    cpus = _cpus(_limit(quota), _limit(period))
    # Above memory.high the kernel stalls the group to reclaim: as good as a limit for an engine.
    limits = (_limit(files.read(f"{group}/{name}")) for name in ("memory.max", "memory.high"))
    limit = _least(limits)
    used = _limit(files.read(f"{group}/memory.current"))
    stat = pairs(files.read(f"{group}/memory.stat"))
    return Limits(cpus, limit, _free(limit, used, _file_cache(stat, "")))


def _v1_cpu(files: Files, group: str) -> Limits:
    quota = _limit(files.read(f"{group}/cpu.cfs_quota_us"))
    period = _limit(files.read(f"{group}/cpu.cfs_period_us"))
    return Limits(cpus=_cpus(quota, period))


def _v1_memory(files: Files, group: str) -> Limits:
    stat = pairs(files.read(f"{group}/memory.stat"))
    own = _limit(files.read(f"{group}/memory.limit_in_bytes"))
    limit = _least((own, _limit(stat.get("hierarchical_memory_limit"))))
    used = _limit(files.read(f"{group}/memory.usage_in_bytes"))
    return Limits(memory_limit=limit, memory_free=_free(limit, used, _file_cache(stat, "total_")))


def _file_cache(stat: dict[str, str], prefix: str) -> int:
    """Bytes that the kernel drops or writes back before it kills anything.

    Both lists of file pages, since a model read twice moves to the active one. Not the key `file`
    (`cache` in v1): that counts tmpfs and shared memory too, which only swap could free, while
    those pages are kept on the anonymous lists.
    """
    return sum(number(stat.get(f"{prefix}{key}")) or 0 for key in ("inactive_file", "active_file"))


def _free(limit: int | None, used: int | None, reclaimable: int) -> int | None:
    """Room below a limit; the file cache that the kernel would drop does not count as used."""
    if limit is None:
        return None
    return max(0, limit - max(0, (used or 0) - reclaimable))
