"""Runtime, Handle, and the record by which a process is found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from engine_launchers.base import ExitResult, LaunchSpec


class Identity(BaseModel):
    """One process for certain: a pid is reused, a (boot, pid, start time) never is.

    `started` is in clock ticks since boot (`/proc/PID/stat`, field 22).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    boot_id: str
    pid: int
    started: int


class HandleRecord(BaseModel):
    """All that is needed to find a process again, written before it is started.

    `shim` and `child` are None until the process is known to run. `folder` holds the shim's
    `pid.json` and `exit.json`; `log` the output of the process, which begins at byte `log_start`
    of that file. `leaf` holds the folders of its control groups; none where none could be made.
    `asleep` is the level of sleep that it was last told to go to, None when awake.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    runtime: Literal["process", "external"] = "process"
    name: str
    generation: int
    spec: LaunchSpec
    folder: Path
    socket: Path
    log: Path
    log_start: int = 0
    leaf: tuple[Path, ...] = ()
    shim: Identity | None = None
    child: Identity | None = None
    asleep: int | None = None


class Availability(BaseModel):
    """Whether a runtime can be used here, and if not, why not, in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usable: bool
    why: str = ""


class Handle(Protocol):
    """Power over one process that runs, or ran."""

    @property
    def record(self) -> HandleRecord: ...

    async def wait(self) -> ExitResult:
        """How it ended. Any number of callers, always the same answer."""

    async def stop(self, grace_s: float) -> ExitResult:
        """TERM, then KILL of the whole tree after `grace_s`; returns when all of it is gone."""

    def detach(self) -> None:
        """Let go without stopping it: the next supervisor finds it by its record."""

    def watch_record(self, tell: Callable[[HandleRecord], None]) -> None:
        """Call `tell` with the new record whenever that had to change while the process runs."""

    async def owns(self, host: str, port: int) -> bool:
        """Whether it is this process, or one that it started, that answers there.

        True as well where nobody does, or where that cannot be seen.
        """


class Runtime(Protocol):
    """Starts processes and finds them again."""

    async def check(self) -> Availability:
        """Whether this runtime works on this machine."""

    def record(self, name: str, generation: int, spec: LaunchSpec) -> HandleRecord:
        """The record to store before `start`."""

    async def start(self, record: HandleRecord) -> Handle:
        """Start what the record says. Raises LaunchFailed where no process came to be."""

    async def recover(self, record: HandleRecord) -> Handle | None:
        """The handle of a process that still runs; None, and nothing of it left, otherwise.

        A process that has lost what held it here is taken hold of again.
        """
