"""What is left of engines: who still lives, whom to end, which files and groups to remove."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from engine_launchers.base import ExitResult
from orchestrator.runtimes.base import HandleRecord, Identity, ShimHold
from orchestrator.runtimes.shim import kernel
from orchestrator.runtimes.shim.leaf import Leaf
from orchestrator.runtimes.shim.tree import Tree

_SWEEP_S = 10.0  # what lives longer than that after a KILL waits for a device
_SHIM_S = 10.0  # for a shim to end what its engine left behind
_POLL_S = 0.02


def is_alive(who: Identity) -> bool:
    """Whether that very process still runs; a recycled pid does not count, a zombie neither."""
    return kernel.lives(who.model_dump())


def is_of_this_boot(who: Identity) -> bool:
    """Whether its pid can stand for anything of ours at all."""
    return bool(kernel.identity(os.getpid())["boot_id"] == who.boot_id)


def hold_of(record: HandleRecord) -> ShimHold:
    """What the shim's side of a record says. Raises TypeError for another runtime's."""
    if not isinstance(record.hold, ShimHold):
        raise TypeError(f"{record.name} is no process of ours, but of {record.runtime}")
    return record.hold


def with_pids(record: HandleRecord, pids: Mapping[str, Identity]) -> HandleRecord:
    """The record of a process that runs; `pids` are those of `shim` and `child`."""
    hold = hold_of(record).model_copy(update={"shim": pids["shim"]})
    return record.model_copy(update={"hold": hold, "child": pids["child"]})


def tmp_of(record: HandleRecord) -> Path:
    """The private TMPDIR of an engine; no other process has it in its environment."""
    return hold_of(record).socket.with_suffix(".tmp")


def leaf_of(record: HandleRecord) -> Leaf:
    """The engine's control groups, as its shim wrote them down; empty where it made none."""
    return Leaf(map(str, _folders(record.folder)))


def _folders(folder: Path) -> list[str]:
    told = read_json(folder / "leaf.json").get("leaf")
    return [each for each in told if isinstance(each, str)] if isinstance(told, list) else []


def tree_of(record: HandleRecord) -> Tree | None:
    """All that the engine of `record` started; None where it can have nothing alive."""
    if record.child is None or not is_of_this_boot(record.child):
        return None
    mark = f"TMPDIR={tmp_of(record)}"
    return Tree(record.child.model_dump(), leaf_of(record), mark)


def end_shim(shim: Identity) -> None:
    """KILL a shim that does not answer, and wait until it is gone; blocks."""
    ends = time.monotonic() + _SHIM_S
    while is_alive(shim) and time.monotonic() < ends:
        kernel.send(shim.pid, shim.started, signal.SIGKILL)
        time.sleep(_POLL_S)


def end(record: HandleRecord) -> None:
    """KILL a shim that does not do it, its engine and all that this one started; blocks.

    Files and control groups of them are removed. Nothing that is not theirs is signalled.
    """
    hold = hold_of(record)
    if hold.shim is not None:
        end_shim(hold.shim)
    tree, leaf = tree_of(record), leaf_of(record)
    if tree is not None:
        tree.kill(_SWEEP_S)
    else:
        leaf.kill()
    leaf.remove()
    shutil.rmtree(tmp_of(record), ignore_errors=True)
    with contextlib.suppress(OSError):
        hold.socket.unlink(missing_ok=True)


def clear(record: HandleRecord) -> None:
    """See to it that nothing is left of an engine that has ended; blocks.

    A shim that lives does this itself, and is given the time.
    """
    ends, shim = time.monotonic() + _SHIM_S, hold_of(record).shim
    while shim is not None and is_alive(shim) and time.monotonic() < ends:
        time.sleep(_POLL_S)
    end(record)


def forget_the_dead(folder: Path) -> None:
    """Remove what generations of an instance left that do not live any more; blocks.

    `folder` holds one folder for each generation. Those of containers are not looked at: whether
    one lives only its own runtime knows.
    """
    for old in folder.glob("*"):
        child = _identity(old, "child")
        if container_of(old) is None and (child is None or not is_alive(child)):
            _end_at(old)
            shutil.rmtree(old, ignore_errors=True)


def make_way(record: HandleRecord) -> None:
    """End every earlier process of an instance that is about to be launched; blocks.

    One that lives here is one that nobody holds: its record was lost. Of the instance's own folder
    only what an earlier shim wrote is removed.
    """
    for old in record.folder.parent.glob("*"):
        _end_at(old)
        if old != record.folder:
            shutil.rmtree(old, ignore_errors=True)
    for name in ("pid.json", "leaf.json", "exit.json"):
        (record.folder / name).unlink(missing_ok=True)


def _end_at(folder: Path) -> None:
    """End whatever a generation left, by what its shim wrote into its folder."""
    shim, child = _identity(folder, "shim"), _identity(folder, "child")
    leaf, mark = Leaf(_folders(folder)), str(read_json(folder / "leaf.json").get("mark") or "")
    if shim is not None:
        end_shim(shim)
    leaf.kill()
    if child is not None and is_of_this_boot(child):
        Tree(child.model_dump(), leaf, mark).kill(_SWEEP_S)
    leaf.remove()
    if tmp := mark.removeprefix("TMPDIR="):
        shutil.rmtree(tmp, ignore_errors=True)


def note_container(folder: Path, container: str, child: Identity | None) -> None:
    """Write whose folder it is, and which process is the engine's, where that can be seen."""
    told = {"container": container, "shim": None, "child": child.model_dump() if child else None}
    (folder / "pid.json").write_text(json.dumps(told))


def container_of(folder: Path) -> str | None:
    """The name of the container that a launch's folder belongs to; None where it is a process's."""
    name = read_json(folder / "pid.json").get("container")
    return name if isinstance(name, str) else None


def _identity(folder: Path, who: str) -> Identity | None:
    try:
        return Identity.model_validate(read_json(folder / "pid.json").get(who))
    except ValidationError:  # it never ran
        return None


def resident_bytes(folder: Path) -> int:
    """Memory that engines started from `folder` hold now: theirs, and theirs again if re-planned.

    Shared pages are counted once per process, so this is an upper bound for forking engines.
    """
    total = 0
    for pid in running_pids(folder):
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            total += psutil.Process(pid).memory_info().rss
    return total


def running_pids(folder: Path) -> frozenset[int]:
    """All processes of engines that were started from `folder` and live."""
    found: set[int] = set()
    for file in folder.glob("*/*/pid.json"):
        child = _identity(file.parent, "child")
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            if child is not None and is_alive(child):
                leader = psutil.Process(child.pid)
                found |= {leader.pid, *(each.pid for each in leader.children(recursive=True))}
    return frozenset(found)


def exit_result(told: Mapping[str, Any]) -> ExitResult:
    """What a shim said of an engine's end. Raises ValidationError for what no shim says."""
    fields = {key: told.get(key) for key in ("code", "signal", "error", "part")}
    return ExitResult.model_validate({**fields, "oom_killed": told.get("oom_killed", False)})


def parse(line: bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none: not written yet, or never."""
    try:
        return parse(path.read_bytes())
    except OSError:
        return {}
