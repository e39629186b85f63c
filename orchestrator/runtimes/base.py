"""Runtime, Handle, and the record by which a process is found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from engine_launchers.base import ExitResult, LaunchSpec, Listen


class Identity(BaseModel):
    """One process for certain: a pid is reused, a (boot, pid, start time) never is.

    `started` is in clock ticks since boot (`/proc/PID/stat`, field 22).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    boot_id: str
    pid: int
    started: int


class _Hold(BaseModel):
    """By what a runtime holds a process, or finds it again: its own business."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ShimHold(_Hold):
    """A process below a shim, which answers on `socket`; None until it is known to run.

    `leaf` holds the folders of its control groups; none where none could be made.
    """

    runtime: Literal["process"] = "process"
    socket: Path
    leaf: tuple[Path, ...] = ()
    shim: Identity | None = None


class ContainerHold(_Hold):
    """A container of that name; its id is None until it is known to run."""

    runtime: Literal["docker"] = "docker"
    container: str
    id: str | None = None


class NoHold(_Hold):
    """A server that is not ours."""

    runtime: Literal["external"] = "external"


Hold = Annotated[ShimHold | ContainerHold | NoHold, Field(discriminator="runtime")]


class HandleRecord(BaseModel):
    """All that is needed to find a process again, written before it is started.

    `hold` is what its runtime has to know. `child` is None until the process is known to run, and
    where it cannot be seen from here. `folder` is for what is kept of this launch; `log` has the
    output of the process, which begins at byte `log_start` of that file. `address` is where it is
    reached, None for where it listens. `asleep` is the level of sleep that it was last told to go
    to, None when awake.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    name: str
    generation: int
    spec: LaunchSpec
    hold: Hold
    folder: Path
    log: Path
    log_start: int = 0
    child: Identity | None = None
    address: Listen | None = None
    asleep: int | None = None

    @property
    def runtime(self) -> Literal["process", "docker", "external"]:
        """The runtime that it belongs to."""
        return self.hold.runtime

    @property
    def reached(self) -> Listen | None:
        """Where requests are sent to, None for a process without a server."""
        return self.address or self.spec.listen


def new_record(
    name: str, generation: int, spec: LaunchSpec, hold: Hold, folder: Path, logs: Path
) -> HandleRecord:
    """The record of a launch that is to come; `folder` and `logs` are those of all instances."""
    log = logs / f"{name}.log"
    return HandleRecord(
        name=name,
        generation=generation,
        spec=spec,
        hold=hold,
        folder=folder / name / str(generation),
        log=log,
        log_start=log.stat().st_size if log.exists() else 0,
    )


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


Tell = Callable[[str, float], None]
"""Hears how far something is that takes long: what is done, and its percentage."""


class Runtime(Protocol):
    """Starts processes and finds them again."""

    async def check(self) -> Availability:
        """Whether this runtime works on this machine."""

    def away(self) -> str:
        """Why nothing can be done with its processes now; empty where it can."""

    def listen(self) -> Listen:
        """Where the next process may listen that has no address of its own."""

    async def prepare(self, spec: LaunchSpec, tell: Tell) -> None:
        """Fetch what `spec` needs; may take long, and may be cancelled. Raises LaunchFailed."""

    def record(self, name: str, generation: int, spec: LaunchSpec) -> HandleRecord:
        """The record to store before `start`."""

    async def start(self, record: HandleRecord) -> Handle:
        """Start what the record says. Raises LaunchFailed where no process came to be."""

    async def recover(self, record: HandleRecord) -> Handle | None:
        """The handle of a process that runs and can be used; None, and nothing of it left, else.

        A process that has lost what held it here is taken hold of again. Raises LaunchFailed where
        nobody can say now what became of it: it is left as it is.
        """
