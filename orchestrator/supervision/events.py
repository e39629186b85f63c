"""The words of the lifecycle: its states, the events that move it, the actions it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from engine_launchers.base import CrashCause, ExitResult


class State(StrEnum):
    """Where a supervised process stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


SERVING = frozenset({State.READY, State.SUSPECT})
RUNNING = frozenset({State.STARTING, State.READY, State.SUSPECT, State.DRAINING, State.STOPPING})

After = Literal["stay", "restart", "retry"]
Timer = Literal["start", "drain", "backoff", "half_open"]

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Somebody wants it to run."""

    why: str = "start requested"


@dataclass(frozen=True)
class Adopted:
    """A process of an earlier supervisor was found alive; it counts as `generation`."""

    generation: int


@dataclass(frozen=True)
class ProbeOk:
    generation: int


@dataclass(frozen=True)
class ProbeFailed:
    generation: int
    why: str


@dataclass(frozen=True)
class PortTaken:
    """A stranger answers on the port that was meant for it."""

    generation: int
    why: str


@dataclass(frozen=True)
class RequestFailed:
    """A request broke on it; one of them only makes it suspect."""

    generation: int
    why: str


@dataclass(frozen=True)
class Exited:
    """The process ended, or could not be started (`exit.error`). `luck` in [0, 1) jitters."""

    generation: int
    exit: ExitResult
    cause: CrashCause
    luck: float = 0.5


@dataclass(frozen=True)
class Idle:
    """No request is in flight any more."""

    generation: int


@dataclass(frozen=True)
class Deadline:
    """A timer that `Arm` asked for is over."""

    generation: int
    timer: Timer


@dataclass(frozen=True)
class Replanned:
    """Answer to `Replan`: whether there is a smaller plan, and what it is or why not."""

    generation: int
    found: bool
    why: str


@dataclass(frozen=True)
class Stop:
    """Somebody wants it to end; `after` says what comes then."""

    drain_s: float
    after: Literal["stay", "restart"] = "stay"
    why: str = "stop requested"


Event = (
    Start | Adopted | ProbeOk | ProbeFailed | PortTaken | RequestFailed | Exited | Idle | Deadline
    | Replanned | Stop
)  # fmt: skip

# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    generation: int


@dataclass(frozen=True)
class Kill:
    """TERM now, KILL after `grace_s`."""

    generation: int
    grace_s: float


@dataclass(frozen=True)
class Arm:
    """Post Deadline(generation, timer) after `seconds`."""

    generation: int
    timer: Timer
    seconds: float


@dataclass(frozen=True)
class Probe:
    """Probe at once instead of at the next interval."""

    generation: int


@dataclass(frozen=True)
class Replan:
    generation: int
    cause: CrashCause


@dataclass(frozen=True)
class Announce:
    """The state changed: log, count, tell the gateways."""

    old: State
    new: State
    why: str


Action = Launch | Kill | Arm | Probe | Replan | Announce
