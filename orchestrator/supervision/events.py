"""The words of the lifecycle: its states, the events that move it, the actions it asks for, what it
remembers, and the numbers that steer it.
"""

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
    SLEEPING = "sleeping"
    BACKOFF = "backoff"
    FAILED = "failed"


SERVING = frozenset({State.READY, State.SUSPECT})
RUNNING = frozenset(
    {
        *(State.STARTING, State.READY, State.SUSPECT),
        *(State.DRAINING, State.STOPPING, State.SLEEPING),
    }
)

After = Literal["stay", "restart", "retry", "sleep", "wake"]
Timer = Literal["drain", "backoff", "half_open"]
StallKind = Literal["start", "wake", "probes", "requests", "work"]
"""How it was found out that a process does nothing: it does not get ready, does not wake up, does
not answer, breaks every request, or does not get on with its work."""

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Somebody wants it to run."""

    why: str = "start requested"


@dataclass(frozen=True)
class Adopted:
    """A process of an earlier supervisor was found alive; it counts as `generation`.

    `level` of its sleep, None when it is awake.
    """

    generation: int
    level: int | None = None


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
class Answered:
    """A request, or a canary, was answered to its end."""

    generation: int


@dataclass(frozen=True)
class Stalled:
    """Nothing moves although it should: while it gets ready, under work, or under a canary."""

    generation: int
    why: str
    kind: StallKind = "work"


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


@dataclass(frozen=True)
class Sleep:
    """Somebody wants its memory and keeps the process: requests in flight get `drain_s`.

    `level` is the engine's own number for how deep. A `Start` wakes it.
    """

    drain_s: float
    level: int
    why: str = "sleep requested"


@dataclass(frozen=True)
class Slept:
    """Answer to `PutToSleep`: it holds no more memory than its level leaves it."""

    generation: int


@dataclass(frozen=True)
class SleepFailed:
    """Answer to `PutToSleep`: it did not, and `why`."""

    generation: int
    why: str


@dataclass(frozen=True)
class Woken:
    """Answer to `WakeUp`: its weights are back; whether it works is for probes to find out."""

    generation: int


@dataclass(frozen=True)
class WakeFailed:
    """Answer to `WakeUp`: they are not, and `why`."""

    generation: int
    why: str


Event = (
    Start | Adopted | ProbeOk | ProbeFailed | PortTaken | RequestFailed | Answered | Stalled
    | Exited | Idle | Deadline | Replanned | Stop | Sleep | Slept | SleepFailed | Woken | WakeFailed
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
class Canary:
    """Have one token made; post Answered, or Stalled of kind "requests" where none comes."""

    generation: int


@dataclass(frozen=True)
class PutToSleep:
    generation: int
    level: int


@dataclass(frozen=True)
class WakeUp:
    """Bring back what `PutToSleep` took away at `level`."""

    generation: int
    level: int


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


Action = Launch | Kill | Arm | Probe | Canary | PutToSleep | WakeUp | Replan | Announce


# --- what is remembered, and what steers ---------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """The numbers that steer `step`; seconds, counts. `half_open_s` None: FAILED is for ever.

    `stuck_grace_s` is the grace of what has nothing to finish: it does not serve yet, or hangs.
    `port_limit` times in a row a port that a stranger took is nobody's fault.
    """

    restart_limit: int = 5
    restart_window_s: float = 600.0
    backoff_max_s: float = 60.0
    stable_s: float = 60.0
    stop_grace_s: float = 10.0
    stuck_grace_s: float = 2.0
    probe_limit: int = 3
    request_limit: int = 5
    port_limit: int = 3
    half_open_s: float | None = 300.0

    def grace(self, stuck: bool) -> float:
        """Seconds between TERM and KILL.

        vLLM swallows a TERM while it starts, a stopped process all of them: each would take the
        whole of a longer grace.
        """
        return min(self.stop_grace_s, self.stuck_grace_s) if stuck else self.stop_grace_s

    def delay(self, failures: int, luck: float) -> float:
        """Pause before the next start: 0, then 1, 2, 4 … seconds, +-25 % by `luck` in [0, 1)."""
        if failures <= 1:
            return 0.0
        pause = min(float(2 ** (failures - 2)), self.backoff_max_s)
        return pause * (0.75 + 0.5 * luck)


@dataclass(frozen=True)
class Lifecycle:
    """The whole state of one instance.

    `failures` holds the clock of each charged exit. `probe_fails` and `request_fails` are streaks.
    `asking` is what it was told and has not answered, `level` how deep it sleeps or shall sleep.
    `stall` says how it was found to hang, until the next launch. `trial`: a half-open retry that
    has not proved itself.
    """

    state: State = State.STOPPED
    generation: int = 0
    after: After = "stay"
    probe_fails: int = 0
    request_fails: int = 0
    failures: tuple[float, ...] = ()
    up_since: float | None = None
    cause: CrashCause | None = None
    stall: StallKind | None = None
    asking: Literal["sleep", "wake"] | None = None
    level: int | None = None
    trial: bool = False
    waiting_plan: bool = False
    waiting_time: bool = False
    ports_taken: int = 0
    why: str = "never started"
