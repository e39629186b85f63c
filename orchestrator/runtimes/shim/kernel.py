"""What the kernel tells of processes: who they are, whose they are, how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from typing import Any, NamedTuple


class Process(NamedTuple):
    """One process that is no zombie. `started` in clock ticks since boot."""

    parent: int
    session: int
    started: int


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, its state, on; OSError when there is none."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def identity(pid: int) -> dict[str, Any]:
    """(boot id, pid, start time) of a process; OSError when there is none."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"boot_id": file.read().strip(), "pid": pid, "started": int(stat(pid)[19])}


def lives(who: Mapping[str, Any]) -> bool:
    """Whether that very process runs; a recycled pid does not count, a zombie neither."""
    try:
        return identity(who["pid"]) == dict(who) and stat(who["pid"])[0] != "Z"
    except (OSError, IndexError):
        return False


def processes() -> dict[int, Process]:
    """Every process that is no zombie, by pid."""
    found: dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = stat(int(name))
                if fields[0] not in "ZX":
                    found[int(name)] = Process(int(fields[1]), int(fields[3]), int(fields[19]))
    return found


def below(seen: Mapping[int, Process], root: int) -> set[int]:
    """The descendants of `root` among `seen`."""
    children: dict[int, list[int]] = {}
    for pid, process in seen.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    parents = [root]
    while parents:
        fresh = [pid for pid in children.get(parents.pop(), []) if pid not in found]
        found.update(fresh)
        parents += fresh
    return found


def marked(seen: Mapping[int, Process], variable: str) -> set[int]:
    """Those of `seen` that were started with `variable`, "NAME=value", in their environment."""
    wanted, found = variable.encode(), set()
    for pid in seen if wanted else ():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if wanted in file.read().split(b"\0"):
                found.add(pid)
    return found


def send(pid: int, started: int, number: int) -> None:
    """Signal a process, unless its pid has come to mean another one."""
    with contextlib.suppress(OSError, IndexError):
        pidfd = os.pidfd_open(pid)
        try:
            if int(stat(pid)[19]) == started:
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def ending(pid: int, started: int) -> dict[str, int | None]:
    """`code` or `signal` of a zombie; both None where its parent has taken its status already."""
    how: dict[str, int | None] = {"code": None, "signal": None}
    with contextlib.suppress(OSError, IndexError):
        fields = stat(pid)
        if fields[0] == "Z" and int(fields[19]) == started:
            code = os.waitstatus_to_exitcode(int(fields[49]))
            how["code" if code >= 0 else "signal"] = abs(code)
    return how


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Write so that a reader sees the old file or the whole new one."""
    with open(path + ".new", "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
