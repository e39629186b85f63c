"""Engines as processes of this machine, each under a shim of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine_launchers.base import LaunchSpec, Listen
from orchestrator.errors import LaunchFailed, PortTaken
from orchestrator.listening import port_of, reserve
from orchestrator.runtimes import remains, shim
from orchestrator.runtimes.base import (
    Availability,
    Handle,
    HandleRecord,
    Identity,
    ShimHold,
    Tell,
    new_record,
)
from orchestrator.runtimes.handle import EndedHandle, Link, ProcessHandle, connect
from orchestrator.runtimes.remains import is_alive, resident_bytes

__all__ = ["SHIM", "ProcessOptions", "ProcessRuntime", "is_alive", "resident_bytes"]

SHIM = Path(shim.__file__).with_name("__main__.py")
_STARTER_S = 30.0
_MARGIN_S = 5.0  # before that is over, a shim that is late gives up by itself

# What a child may inherit. Everything else (PORT, API_KEY, LLAMA_ARG_*, VLLM_*) would be read by an
# engine as a flag.
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES", "PYTHONPYCACHEPREFIX",
)  # fmt: skip


@dataclass(frozen=True)
class ProcessOptions:
    """Folders, limits, and the address that engines listen on. Sizes in bytes, times in seconds."""

    folder: Path
    logs: Path
    sockets: Path
    lease_s: float
    grace_s: float
    log_max_bytes: int
    log_files: int
    host: str = "127.0.0.1"


class ProcessRuntime:
    """Starts shims and finds them again."""

    def __init__(self, options: ProcessOptions, environment: Mapping[str, str]) -> None:
        self._options, self._environment = options, dict(environment)
        self._inherited = {k: environment[k] for k in INHERITED if k in environment}

    async def check(self) -> Availability:
        """Usable wherever there is /proc: identities and the sweep read it.

        What dead engines left in the folder, and their control groups, is removed on the way.
        """
        if not os.path.exists("/proc/self/stat"):
            return Availability(usable=False, why="there is no /proc on this system")
        for each in self._options.folder.glob("*"):
            await asyncio.to_thread(remains.forget_the_dead, each)
        return Availability(usable=True)

    def away(self) -> str:
        """Every shim answers for itself."""
        return ""

    def listen(self) -> Listen:
        """A port of the engines' address that nobody uses now. Raises LaunchFailed."""
        host = self._options.host
        try:
            with reserve(host, 0, "engine_host") as free:
                return Listen(host=host, port=port_of(free))
        except PortTaken as error:
            raise LaunchFailed(error.message) from error

    async def prepare(self, spec: LaunchSpec, tell: Tell) -> None:
        """Engines are installed before anything is launched."""

    def record(self, name: str, generation: int, spec: LaunchSpec) -> HandleRecord:
        """The record to store before `start`."""
        options = self._options
        short = name if len(name) <= 32 else hashlib.sha256(name.encode()).hexdigest()[:16]
        hold = ShimHold(socket=options.sockets / f"{short}.{generation}.sock")
        return new_record(name, generation, spec, hold, options.folder, options.logs)

    async def start(self, record: HandleRecord) -> Handle:
        """Start a shim and wait until it says that the engine runs."""
        await asyncio.to_thread(remains.make_way, record)
        record.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        running = await self._start_shim(record)
        try:
            link = await connect(running)
        except LaunchFailed:
            ended = remains.read_json(record.folder / "exit.json")
            if not ended:
                await asyncio.to_thread(remains.end, running)
                raise
            return EndedHandle(running, remains.exit_result(ended))
        return ProcessHandle(link, self._reach, self._options.lease_s)

    async def recover(self, record: HandleRecord) -> Handle | None:
        """The engine of `record` under its shim, or under a new one where that was lost.

        None where the engine has ended; nothing of it is left then.
        """
        told = remains.read_json(record.folder / "pid.json")
        try:
            pids = {key: Identity.model_validate(told[key]) for key in ("shim", "child")}
        except (KeyError, ValidationError):
            return None
        found = remains.with_pids(record, pids)
        try:
            link = await self._reach(found)
        except (LaunchFailed, OSError):
            await asyncio.to_thread(remains.clear, found)
            return None
        return ProcessHandle(link, self._reach, self._options.lease_s)

    async def _reach(self, record: HandleRecord) -> Link:
        """A connection to the shim of a living engine; one that does not answer is replaced.

        Raises LaunchFailed where the engine has ended, or ends because nobody can hold it.
        """
        if record.child is None or not is_alive(record.child):
            raise LaunchFailed(f"{record.name}: it has ended")
        try:
            return await connect(record)
        except LaunchFailed:
            if (shim := remains.hold_of(record).shim) is not None:
                await asyncio.to_thread(remains.end_shim, shim)
        return await connect(await self._start_shim(record))

    async def _start_shim(self, record: HandleRecord) -> HandleRecord:
        """Start a shim that starts the engine, or takes over the one that `record` names.

        Returns the record with the identities of both. Raises LaunchFailed.
        """
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
        starter.stdin.write(json.dumps(self._order(record)).encode())
        starter.stdin.close()
        try:
            async with asyncio.timeout(_STARTER_S):
                line = await starter.stdout.readline()
                await starter.wait()
        except TimeoutError:
            starter.kill()
            raise LaunchFailed(f"the shim said nothing for {_STARTER_S:g} s") from None
        told = remains.parse(line)
        if "error" in told or not told:
            raise LaunchFailed(f"{record.name}: {told.get('error', 'the shim said nothing')}")
        pids = {key: Identity.model_validate(told[key]) for key in ("shim", "child")}
        running = remains.with_pids(record, pids)
        leaf = {"leaf": tuple(map(Path, told["leaf"]))}
        return running.model_copy(update={"hold": remains.hold_of(running).model_copy(update=leaf)})

    def _order(self, record: HandleRecord) -> dict[str, Any]:
        """What the shim is told; see there."""
        options, spec = self._options, record.spec
        tmp = str(remains.tmp_of(record))
        wanted = {k: v for k, v in self._environment.items() if k.startswith(spec.inherits)}
        marks = hashlib.sha256(str(record.folder).encode()).hexdigest()[:8]
        return {
            "argv": spec.argv,
            "env": {**self._inherited, **wanted, **spec.env, "TMPDIR": tmp},
            "cwd": str(record.folder),
            "log": str(record.log),
            "log_max_bytes": options.log_max_bytes,
            "log_files": options.log_files,
            "folder": str(record.folder),
            "socket": str(remains.hold_of(record).socket),
            "tmp": tmp,
            "vital": spec.vital,
            "leaf": f"engineroom.{record.name}.{record.generation}.{marks}",
            "memory_max": spec.memory_max,
            "lease_s": options.lease_s,
            "grace_s": options.grace_s,
            "until": time.monotonic() + _STARTER_S - _MARGIN_S,
            "attach": record.child.model_dump() if record.child else None,
        }
