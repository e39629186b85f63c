"""Looks at this machine, the data directory and the running server. Changes nothing, never raises
for what it finds.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from pydantic import ValidationError

from engine_launchers.machine import HardwareProfile
from orchestrator.compiled import compiled
from orchestrator.doctor import facts as nouns
from orchestrator.errors import PortTaken
from orchestrator.hardware.cgroup import cgroup_limits
from orchestrator.hardware.files import Disk
from orchestrator.hardware.nvml import cards_on_bus, driver_files
from orchestrator.listening import listen
from orchestrator.runtimes.base import Identity
from orchestrator.runtimes.process import is_alive
from orchestrator.settings import Settings
from orchestrator.supervision.database import read_only

_GIB = 2**30
_ANSWER_S = 5.0
_SHM = Path("/dev/shm")  # noqa: S108 - looked at
_DEVICES = ("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "kfd", "dri/renderD*", "accel/accel*")


def look(settings: Settings, hardware: HardwareProfile) -> nouns.Facts:
    """Everything that the doctor judges, but the engines."""
    data = settings.data
    server = _server(data)
    running = tuple(_running(data / "instances"))
    ours = {server.pid, *(each.pid for each in running)}
    lost = server.pid is None
    made = compiled()
    return nouns.Facts(
        hardware=hardware,
        nvidia=bool(driver_files(Disk()) or cards_on_bus(Disk())),
        devices=tuple(_devices()),
        memory=_memory(hardware),
        ports=tuple(_ports(settings, ours)),
        places=tuple(_places(settings)),
        disks=tuple(_disks(settings)),
        server=server,
        running=running,
        sockets=str(settings.run) if settings.run.is_dir() else "",
        broken=tuple(str(path) for path in sorted(data.glob("state.broken-*[0-9]"))),
        state=_state(data / "state.db") if lost else "",
        lease_s=settings.lease_s,
        compiled=made.modules,
        stale=made.stale,
    )


def _devices() -> Iterator[nouns.Device]:
    for pattern in _DEVICES:
        for path in sorted(Path("/dev").glob(pattern)):
            yield nouns.Device(path=str(path), usable=os.access(path, os.R_OK | os.W_OK))


def _memory(hardware: HardwareProfile) -> nouns.Memory:
    swap = psutil.swap_memory()
    membership = Disk().read("/proc/self/cgroup")
    limit = cgroup_limits(Disk(), membership).memory_limit if membership else None
    whole = psutil.virtual_memory().total
    return nouns.Memory(
        total=hardware.ram_total,
        available=hardware.ram_available,
        swap_total=swap.total,
        swap_used=swap.used,
        limit=limit if limit is not None and limit < whole else None,
        shm=shutil.disk_usage(_SHM).total if _SHM.is_dir() else None,
    )


def _ports(settings: Settings, ours: set[int | None]) -> Iterator[nouns.PortUse]:
    if settings.control_socket is None:  # else the gateway is elsewhere
        yield _port("port", settings.host, settings.port, ours)
    yield _port("admin_port", settings.admin_host, settings.admin_port, ours)


def _port(name: str, host: str, port: int, ours: set[int | None]) -> nouns.PortUse:
    fields = {"name": name, "address": f"{host}:{port}"}
    try:
        listen(host, port, name).close()
    except PortTaken as error:
        pid, holder = _holder(port)
        told = {"trouble": error.message, "holder": holder, "ours": _family(pid, ours)}
        return nouns.PortUse.model_validate({**fields, **told})
    return nouns.PortUse.model_validate(fields)


def _holder(port: int) -> tuple[int | None, str]:
    """The process that listens on a port, where this user may see it."""
    try:
        for each in psutil.net_connections("tcp"):
            if (
                each.status == psutil.CONN_LISTEN
                and getattr(each.laddr, "port", None) == port
                and each.pid
            ):
                return each.pid, f"{psutil.Process(each.pid).name()}, pid {each.pid}"
    except psutil.Error:  # not ours to see
        return None, ""
    return None, ""


def _family(pid: int | None, ours: set[int | None]) -> bool:
    """Whether a process is one of ours, or was started by one."""
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        return bool(ours & {pid, *(each.pid for each in process.parents())})
    except psutil.Error:
        return pid in ours


def _places(settings: Settings) -> Iterator[nouns.Place]:
    data = settings.data
    yield _place("data folder", data, private=True)
    yield _place("engines folder", settings.engines)
    yield _place("socket folder", settings.run, private=True)
    yield _place("admin token", data / "admin.token", private=True)
    yield _place("state file", data / "state.db")
    if settings.api_keys_file is not None:
        yield _place("API keys", settings.api_keys_file.expanduser(), private=True)


def _place(what: str, path: Path, private: bool = False) -> nouns.Place:
    try:
        found = path.stat()
    except OSError:
        return nouns.Place(what=what, path=str(path), mode=None)
    return nouns.Place(
        what=what,
        path=str(path),
        mode=found.st_mode & 0o7777,
        mine=found.st_uid == os.getuid(),
        writable=os.access(path, os.W_OK),
        private=private,
    )


def _disks(settings: Settings) -> Iterator[nouns.Disk]:
    for what, path, least in (
        ("disk of the data", settings.data, _GIB),
        ("disk of the engines", settings.engines, 5 * _GIB),
        ("disk of the cache", settings.cache, _GIB),
    ):
        near = next(each for each in (path, *path.parents) if each.exists())
        free = shutil.disk_usage(near).free
        yield nouns.Disk(what=what, path=str(near), free=free, least=least)


def _server(data: Path) -> nouns.ServerState:
    pid = _lock_holder(data / "supervisor.lock")
    try:
        told = json.loads((data / "endpoints.json").read_text())
        admin, token = str(told["admin"]), Path(told["token_file"]).read_text().strip()
    except (OSError, ValueError, KeyError, TypeError):
        trouble = "it has not said yet where it listens" if pid else ""
        return nouns.ServerState(pid=pid, trouble=trouble)
    if pid is None:
        return nouns.ServerState(admin=admin)
    try:
        headers = {"authorization": f"Bearer {token}"}
        answer = httpx.get(f"{admin}/metrics", headers=headers, timeout=_ANSWER_S, trust_env=False)
    except httpx.HTTPError as error:
        why = f"{admin}: {error or type(error).__name__}"
        return nouns.ServerState(pid=pid, admin=admin, trouble=why)
    trouble = f"HTTP {answer.status_code} from {admin}" if answer.is_error else ""
    degraded = "\nengineroom_storage_degraded 1" in answer.text
    return nouns.ServerState(pid=pid, admin=admin, trouble=trouble, degraded=degraded)


def _lock_holder(path: Path) -> int | None:
    """Who holds the lock, 0 where that is not known; None where nobody does.

    Read from the kernel's list: to try the lock would be to hold it, when a server may want it.
    """
    try:
        inode = path.stat().st_ino
        text = path.read_text().strip()
    except OSError:
        return None
    locks = (line.split() for line in (Disk().read("/proc/locks") or "").splitlines())
    held = any(
        words[1] == "FLOCK" and words[2] != "->" and words[5].endswith(f":{inode}")
        for words in locks
        if len(words) > 5
    )
    if not held:
        return None
    return int(text) if text.isdigit() else 0


def _running(instances: Path) -> Iterator[nouns.Running]:
    for file in sorted(instances.glob("*/*/pid.json")):
        try:
            told = json.loads(file.read_text())
            child, shim = (Identity.model_validate(told[key]) for key in ("child", "shim"))
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            continue  # of no process: the next launch removes it
        if is_alive(child):
            name = file.parent.parent.name
            yield nouns.Running(name=name, pid=child.pid, watched=is_alive(shim))


def _state(path: Path) -> str:
    """What is wrong with a state file that nobody has open; empty where it is whole."""
    log = path.with_name(path.name + "-wal")
    if not path.exists() or (log.exists() and log.stat().st_size):
        return ""  # its last writes are still in the log: only the next supervisor can tell
    try:
        rows = read_only(path, "PRAGMA quick_check(1)")
    except sqlite3.Error as error:
        return str(error)
    return "" if rows == [("ok",)] else str(rows[0][0])
