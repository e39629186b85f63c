"""The control groups of one engine: what it forks cannot leave them, and its memory is counted.

A leaf is a folder below the group of the process that makes it: one in the v2 hierarchy, which can
kill all in it at once, and one of v1's memory controller, where that one is mounted. Where no
folder may be made, as in most containers, there is no leaf, and everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any

BLAME_S = 10.0  # a process that loses a child for memory may take a while to give up
_BLAME_FROM_AFAR_S = 2.0  # where all that is known is that the machine killed somebody
_REMOVE_S = 2.0  # a group counts as busy until the kernel has let go of its last process


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> bool:
    """Write to a file that is there already; whether the kernel took it."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, text.encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _count(text: str, key: str) -> int | None:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return None


def own_groups(membership: str, mounts: str) -> list[str]:
    """Folders of this process's groups: v2 first, then v1's memory controller.

    `membership` is the text of /proc/self/cgroup, `mounts` that of /proc/self/mountinfo.
    """
    paths: dict[str, str] = {}
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths.update(dict.fromkeys(controllers.split(","), path))
    found: dict[str, str] = {}
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        v1 = kind[0] == "cgroup" and "memory" in kind[2].split(",")
        name = "" if kind[0] == "cgroup2" else "memory" if v1 else None
        if name is None or name not in paths:
            continue
        root, path = fields[3].rstrip("/"), paths[name]
        inside = path[len(root) :] if path == root or path.startswith(root + "/") else ""
        found.setdefault(name, os.path.normpath(fields[4] + inside))
    return [found[name] for name in ("", "memory") if name in found]


def _here() -> list[str]:
    return own_groups(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo"))


class Leaf:
    """The folders of one engine's groups; none where none could be made."""

    def __init__(self, folders: Iterable[str] = ()) -> None:
        self.folders = list(folders)

    @classmethod
    def below_us(cls, name: str) -> Leaf:
        """The leaf of that name below our own groups. It is not made yet."""
        return cls(os.path.join(group, name) for group in _here())

    def make(self) -> None:
        """Make the folders; those that cannot be made are forgotten."""
        made: list[str] = []
        for folder in self.folders:
            group = os.path.dirname(folder)
            if "memory" in _read(f"{group}/cgroup.controllers").split():
                # Refused in a group that holds processes, unless it is the machine's root.
                _write(f"{group}/cgroup.subtree_control", "+memory")
            with contextlib.suppress(OSError):
                os.mkdir(folder)
                made.append(folder)
        self.folders = made

    def limit(self, memory_max: int) -> bool:
        """Let the kernel kill in here beyond so many bytes, swap included; whether it will."""
        held = False
        for folder in self.folders:
            for limit, swap in (
                ("memory.max", ("memory.swap.max", "0")),
                ("memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", str(memory_max))),
            ):
                if _write(f"{folder}/{limit}", str(memory_max)):
                    held = True
                    _write(f"{folder}/{swap[0]}", swap[1])
        return held

    def enter(self) -> None:
        """Move the calling process into it."""
        for folder in self.folders:
            _write(f"{folder}/cgroup.procs", "0")

    def pids(self) -> set[int]:
        """Every process in it. 0 stands for those that our process namespace does not show."""
        words = [word for f in self.folders for word in _read(f"{f}/cgroup.procs").split()]
        return {int(word) for word in words} - {0}

    def kill(self) -> None:
        """KILL everything in it; what they fork meanwhile too, where the kernel is new enough."""
        for folder in self.folders:
            if not _write(f"{folder}/cgroup.kill", "1"):
                for word in _read(f"{folder}/cgroup.procs").split():
                    with contextlib.suppress(ProcessLookupError):
                        if word != "0":
                            os.kill(int(word), signal.SIGKILL)

    def memory_kills(self) -> int | None:
        """How many of its processes the kernel has killed for memory; None: not counted here."""
        for folder in self.folders:
            for file in ("memory.events", "memory.oom_control"):
                if (count := _count(_read(f"{folder}/{file}"), "oom_kill")) is not None:
                    return count
        return None

    def remove(self) -> bool:
        """Remove the folders of groups that are empty; whether nothing is left of them."""
        ends = time.monotonic() + _REMOVE_S
        for folder in self.folders:
            while True:
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > ends:
                        return False
                    time.sleep(0.01)
        return True


class MemoryKills:
    """Whether the kernel killed for memory, and whether that was this engine's end.

    Without a leaf that counts, the counters of our own group (v2) or of the machine tell only that
    somebody was killed: then the engine has to have died of that very signal.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.leaf, self.exact = leaf, leaf.memory_kills() is not None
        self.seen, self.at = self._count(), float("-inf")

    def _count(self) -> int:
        if self.exact:
            return self.leaf.memory_kills() or 0
        texts = [_read(f"{group}/memory.events") for group in _here()] + [_read("/proc/vmstat")]
        counts = (_count(text, "oom_kill") for text in texts)
        return next((count for count in counts if count is not None), 0)

    def look(self) -> None:
        """Note when the count rose."""
        count = self._count()
        if count > self.seen:
            self.at = time.monotonic()
        self.seen = count

    def ended(self, how: Mapping[str, Any]) -> bool:
        """Whether an end, `code` and `signal`, was the kernel's doing for want of memory."""
        self.look()
        since = time.monotonic() - self.at
        if self.exact:
            return since < BLAME_S
        return since < _BLAME_FROM_AFAR_S and how.get("signal") == signal.SIGKILL
