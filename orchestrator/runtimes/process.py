"""Engines as processes of this machine, each under a shim of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from engine_launchers.base import ExitResult, LaunchSpec
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes import shim
from orchestrator.runtimes.base import Availability, Handle, HandleRecord, Identity

SHIM = Path(shim.__file__)
_CONNECT_S = 10.0  # a shim answers in milliseconds; a machine that swaps gets its time
_STARTER_S = 30.0
_STOP_MARGIN_S = 5.0

# What a child may inherit. Everything else (PORT, API_KEY, LLAMA_ARG_*, VLLM_*) would be read by an
# engine as a flag.
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES", "PYTHONPYCACHEPREFIX",
)  # fmt: skip


@dataclass(frozen=True)
class ProcessOptions:
    """Folders and limits. Sizes in bytes, times in seconds."""

    folder: Path
    logs: Path
    sockets: Path
    lease_s: float
    grace_s: float
    log_max_bytes: int
    log_files: int


class ProcessRuntime:
    """Starts shims and finds them again."""

    def __init__(self, options: ProcessOptions, environment: Mapping[str, str]) -> None:
        self._options = options
        self._inherited = {k: environment[k] for k in INHERITED if k in environment}

    async def check(self) -> Availability:
        """Usable wherever there is /proc: identities and the sweep read it."""
        if os.path.exists("/proc/self/stat"):
            return Availability(usable=True)
        return Availability(usable=False, why="there is no /proc on this system")

    def record(self, name: str, generation: int, spec: LaunchSpec) -> HandleRecord:
        """The record to store before `start`."""
        options = self._options
        log = options.logs / f"{name}.log"
        short = name if len(name) <= 32 else hashlib.sha256(name.encode()).hexdigest()[:16]
        return HandleRecord(
            name=name,
            generation=generation,
            spec=spec,
            folder=options.folder / name / str(generation),
            socket=options.sockets / f"{short}.{generation}.sock",
            log=log,
            log_start=log.stat().st_size if log.exists() else 0,
        )

    async def start(self, record: HandleRecord) -> Handle:
        """Start a shim and wait until it says that the engine runs."""
        options = self._options
        _forget_the_dead(record)
        record.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        tmp = record.socket.with_suffix(".tmp")
        order = {
            "argv": record.spec.argv,
            "env": {**self._inherited, **record.spec.env, "TMPDIR": str(tmp)},
            "cwd": str(record.folder),
            "log": str(record.log),
            "log_max_bytes": options.log_max_bytes,
            "log_files": options.log_files,
            "folder": str(record.folder),
            "socket": str(record.socket),
            "tmp": str(tmp),
            "vital": record.spec.vital,
            "lease_s": options.lease_s,
            "grace_s": options.grace_s,
        }
        starter = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(SHIM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._inherited,
        )
        if starter.stdin is None or starter.stdout is None:
            raise LaunchFailed("the shim has no pipes")
        starter.stdin.write(json.dumps(order).encode())
        starter.stdin.close()
        try:
            async with asyncio.timeout(_STARTER_S):
                line = await starter.stdout.readline()
                await starter.wait()
        except TimeoutError:
            starter.kill()
            raise LaunchFailed(f"the shim said nothing for {_STARTER_S:g} s") from None
        told = _json(line)
        if "error" in told or not told:
            raise LaunchFailed(f"{record.name}: {told.get('error', 'the shim said nothing')}")
        running = record.model_copy(
            update={
                "shim": Identity.model_validate(told["shim"]),
                "child": Identity.model_validate(told["child"]),
            }
        )
        try:
            return await _connect(running, options.lease_s)
        except LaunchFailed:
            ended = _read_json(record.folder / "exit.json")
            if not ended:
                _end(running)
                raise
            return EndedHandle(running, _exit_result(ended))

    async def recover(self, record: HandleRecord) -> Handle | None:
        """Connect to the shim of `record`; end its engine where the shim is lost."""
        told = _read_json(record.folder / "pid.json")
        try:
            pids = {key: Identity.model_validate(told[key]) for key in ("shim", "child")}
        except (KeyError, ValidationError):
            return None
        found = record.model_copy(update=pids)
        if not is_alive(pids["child"]):
            return None
        try:
            return await _connect(found, self._options.lease_s)
        except LaunchFailed:
            _end(found)
            return None


class ProcessHandle:
    """A connection to one shim. The lease is renewed as long as this object is attached."""

    def __init__(
        self,
        record: HandleRecord,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lease_s: float,
    ) -> None:
        self._record = record
        self._reader, self._writer = reader, writer
        self._exit: asyncio.Future[ExitResult] = asyncio.get_running_loop().create_future()
        self._tasks = (
            asyncio.create_task(self._listen(), name=f"shim {record.name}"),
            asyncio.create_task(self._renew(lease_s / 4), name=f"lease {record.name}"),
        )

    @property
    def record(self) -> HandleRecord:
        """The record, with the identities of shim and child."""
        return self._record

    async def wait(self) -> ExitResult:
        """How the engine ended; any number of callers."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> ExitResult:
        """Ask the shim to end the whole tree; returns when it is gone.

        A shim that does not answer in time is ended itself, engine first.
        """
        self._send({"op": "stop", "grace_s": grace_s})
        try:
            async with asyncio.timeout(grace_s + _STOP_MARGIN_S):
                return await self.wait()
        except TimeoutError:
            _end(self._record)
            return await self.wait()

    def detach(self) -> None:
        """Close the connection; the shim keeps its engine until the lease ends."""
        for task in self._tasks:
            task.cancel()
        self._writer.close()

    def _send(self, order: dict[str, object]) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(order).encode() + b"\n")

    async def _renew(self, every_s: float) -> None:
        while True:
            self._send({"op": "renew"})
            await asyncio.sleep(every_s)

    async def _listen(self) -> None:
        told: dict[str, Any] = {}
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                told = _json(line)
                if told.get("event") == "exit":
                    break
        if told.get("event") != "exit":
            told = _read_json(self._record.folder / "exit.json") or self._shim_lost()
        self._tasks[1].cancel()
        self._writer.close()
        self._exit.set_result(_exit_result(told))

    def _shim_lost(self) -> dict[str, Any]:
        if self._record.child is not None:
            kill_tree(self._record.child)
        self._record.socket.unlink(missing_ok=True)
        shutil.rmtree(self._record.socket.with_suffix(".tmp"), ignore_errors=True)
        return {"error": "its shim was lost"}


@dataclass(frozen=True)
class EndedHandle:
    """A process that was over before anybody could connect to its shim."""

    record: HandleRecord
    exit: ExitResult

    async def wait(self) -> ExitResult:
        """How it ended."""
        return self.exit

    async def stop(self, grace_s: float) -> ExitResult:
        """Nothing is left to stop."""
        return self.exit

    def detach(self) -> None:
        """Nothing is attached."""


async def _connect(record: HandleRecord, lease_s: float) -> ProcessHandle:
    """Open the shim's socket and check that it is the shim of this very record."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_unix_connection(str(record.socket))
            hello = _json(await reader.readline())
    except (OSError, TimeoutError) as error:
        if writer is not None:
            writer.close()
        raise LaunchFailed(f"{record.name}: its shim does not answer: {error}") from error
    if record.child is None or hello.get("child") != record.child.model_dump():
        writer.close()
        raise LaunchFailed(f"{record.name}: another process answers on {record.socket}")
    return ProcessHandle(record, reader, writer, lease_s)


def is_alive(who: Identity) -> bool:
    """Whether that very process still runs; a recycled pid does not count, a zombie neither."""
    try:
        if shim.identity(who.pid) != who.model_dump():
            return False
        return Path(f"/proc/{who.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def kill_tree(leader: Identity) -> None:
    """KILL the process group of a leader that lost its shim; never a stranger's."""
    if is_alive(leader):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)


def _end(record: HandleRecord) -> None:
    """KILL an engine and its shim, whichever of them live."""
    for who in (record.child, record.shim):
        if who is not None:
            kill_tree(who)


def _forget_the_dead(record: HandleRecord) -> None:
    """Remove what earlier generations of an instance left on disk, if nothing of them lives.

    In the folder of the one to come only what a shim wrote is old.
    """
    for name in ("pid.json", "exit.json"):
        (record.folder / name).unlink(missing_ok=True)
    for old in set(record.folder.parent.glob("*")) - {record.folder}:
        child = _read_json(old / "pid.json").get("child")
        try:
            if child is None or not is_alive(Identity.model_validate(child)):
                shutil.rmtree(old, ignore_errors=True)
        except ValidationError:
            shutil.rmtree(old, ignore_errors=True)


def resident_bytes(folder: Path) -> int:
    """Memory that engines started from `folder` hold now: theirs, and theirs again if re-planned.

    Shared pages are counted once per process, so this is an upper bound for forking engines.
    """
    total = 0
    for file in folder.glob("*/*/pid.json"):
        try:
            child = Identity.model_validate(_read_json(file).get("child"))
            if is_alive(child):
                leader = psutil.Process(child.pid)
                tree = [leader, *leader.children(recursive=True)]
                total += sum(process.memory_info().rss for process in tree)
        except (ValidationError, psutil.Error):  # it ended while we looked
            continue
    return total


def _exit_result(told: Mapping[str, Any]) -> ExitResult:
    fields = {key: told.get(key) for key in ("code", "signal", "error", "part")}
    return ExitResult.model_validate(fields)


def _json(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _json(path.read_bytes())
    except OSError:  # not written: the process never ran, or has not ended
        return {}
