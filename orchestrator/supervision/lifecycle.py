"""The lifecycle of one supervised process, as a pure function.

::

                    Start                 ProbeOk
       STOPPED ───────────────▶ STARTING ─────────▶ READY ◀────────┐
        ▲ ▲ │ Adopted              │ │               │ ProbeFailed │ ProbeOk
        │ │ └──────────────────────┼─┼──▶ SUSPECT ◀──┘ RequestFailed
        │ │                        │ │       │ └───────────────────┘
        │ │   Stop, start deadline │ │       │ `probe_limit` failures in a row
        │ │        ┌───────────────┘ │       ▼
        │ └── STOPPING ◀──────────── │ ◀─────┤        READY, SUSPECT ──Stop(drain)──▶ DRAINING
        │  Exited  ▲                 │       │        DRAINING ──Idle, deadline──▶ STOPPING
        │          └── DRAINING      │ Exited│
        │                            ▼       ▼
        └──────── FAILED ◀───────── BACKOFF ──deadline and plan there──▶ STARTING
           Stop     │ half-open                FAILED: a cause that repeats itself, no smaller
                    └──▶ STARTING              plan, or the restart budget is spent

`step(now, event, policy, clock)` returns the next record and the actions to carry out. It does no
I/O and reads no clock. Events of an older generation are dropped. An exit nobody asked for is a
failure, whatever its code. The transition that must not exist: FAILED to anything by itself, but
for the half-open retry that the policy names. Attempts are forgotten after `stable_s` in service;
starts that a person asks for are never charged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine_launchers.base import CrashCause
from orchestrator.supervision.events import (
    RUNNING,
    SERVING,
    Action,
    Adopted,
    After,
    Announce,
    Arm,
    Deadline,
    Event,
    Exited,
    Idle,
    Kill,
    Launch,
    PortTaken,
    Probe,
    ProbeFailed,
    ProbeOk,
    Replan,
    Replanned,
    RequestFailed,
    Start,
    State,
    Stop,
    Timer,
)

__all__ = [
    "RUNNING",
    "SERVING",
    "TRANSITIONS",
    "Action",
    "Adopted",
    "After",
    "Announce",
    "Arm",
    "Deadline",
    "Event",
    "Exited",
    "Idle",
    "Kill",
    "Launch",
    "Lifecycle",
    "Policy",
    "PortTaken",
    "Probe",
    "ProbeFailed",
    "ProbeOk",
    "Replan",
    "Replanned",
    "RequestFailed",
    "Start",
    "State",
    "Stop",
    "Timer",
    "step",
]


S = State
TRANSITIONS: frozenset[tuple[State, State]] = frozenset(
    {
        (S.STOPPED, S.STARTING), (S.STOPPED, S.SUSPECT),
        (S.STARTING, S.READY), (S.STARTING, S.STOPPING), (S.STARTING, S.BACKOFF),
        (S.STARTING, S.FAILED),
        (S.READY, S.SUSPECT), (S.READY, S.DRAINING), (S.READY, S.STOPPING),
        (S.READY, S.BACKOFF), (S.READY, S.FAILED),
        (S.SUSPECT, S.READY), (S.SUSPECT, S.DRAINING), (S.SUSPECT, S.STOPPING),
        (S.SUSPECT, S.BACKOFF), (S.SUSPECT, S.FAILED),
        (S.DRAINING, S.STOPPING), (S.DRAINING, S.STOPPED), (S.DRAINING, S.STARTING),
        (S.STOPPING, S.STOPPED), (S.STOPPING, S.STARTING), (S.STOPPING, S.BACKOFF),
        (S.STOPPING, S.FAILED),
        (S.BACKOFF, S.STARTING), (S.BACKOFF, S.STOPPED), (S.BACKOFF, S.FAILED),
        (S.FAILED, S.STARTING), (S.FAILED, S.STOPPED),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """The numbers that steer `step`; seconds, counts. `half_open_s` None: FAILED is for ever.

    So many times in a row as `port_limit` says is a port that a stranger took forgiven."""

    restart_limit: int = 5
    restart_window_s: float = 600.0
    backoff_max_s: float = 60.0
    stable_s: float = 60.0
    start_timeout_s: float = 600.0
    stop_grace_s: float = 10.0
    probe_limit: int = 3
    half_open_s: float | None = 300.0
    starting_grace_s: float = 2.0
    port_limit: int = 3

    def grace(self, state: State) -> float:
        """Seconds between TERM and KILL: nothing is in flight in what has not become ready.

        vLLM swallows a TERM while it starts, and would take the whole of a longer grace.
        """
        if state is S.STARTING:
            return min(self.stop_grace_s, self.starting_grace_s)
        return self.stop_grace_s

    def delay(self, failures: int, luck: float) -> float:
        """Pause before the next start: 0, then 1, 2, 4 … seconds, +-25 % by `luck` in [0, 1)."""
        if failures <= 1:
            return 0.0
        pause = min(float(2 ** (failures - 2)), self.backoff_max_s)
        return pause * (0.75 + 0.5 * luck)


@dataclass(frozen=True)
class Lifecycle:
    """The whole state of one instance. `failures` holds the clock of each charged exit."""

    state: State = State.STOPPED
    generation: int = 0
    after: After = "stay"
    probe_fails: int = 0
    failures: tuple[float, ...] = ()
    up_since: float | None = None
    cause: CrashCause | None = None
    waiting_plan: bool = False
    waiting_time: bool = False
    ports_taken: int = 0
    why: str = "never started"


Result = tuple[Lifecycle, tuple[Action, ...]]


def step(now: Lifecycle, event: Event, policy: Policy, clock: float) -> Result:
    """The next record and what to do. `clock` is monotonic seconds."""
    if not isinstance(event, Start | Stop | Adopted) and event.generation != now.generation:
        return now, ()
    match event:
        case Start():
            return _start(now, event.why, policy)
        case Adopted():
            return _adopt(now, event)
        case Stop():
            return _stop(now, event, policy)
        case ProbeOk():
            return _probe_ok(now, clock)
        case ProbeFailed() | RequestFailed():
            return _trouble(now, event, policy)
        case PortTaken():
            return _port_taken(now, event, policy)
        case Idle():
            if now.state is S.DRAINING:
                return _kill(now, "drained", policy)
        case Deadline():
            return _deadline(now, event, policy)
        case Replanned():
            return _replanned(now, event, policy)
        case Exited():
            return _exited(now, event, policy, clock)
    return now, ()


def _move(now: Lifecycle, new: State, why: str, *actions: Action, **changes: object) -> Result:
    moved = replace(now, state=new, why=why, **changes)  # type: ignore[arg-type]
    return moved, (*actions, Announce(now.state, new, why))


def _launch(now: Lifecycle, why: str, policy: Policy, **changes: object) -> Result:
    generation = now.generation + 1
    fresh = {"generation": generation, "after": "stay", "probe_fails": 0, "up_since": None}
    idle = {"waiting_plan": False, "waiting_time": False}
    arm = Arm(generation, "start", policy.start_timeout_s)
    launch = Launch(generation)
    return _move(now, S.STARTING, why, launch, arm, **{**fresh, **idle, **changes})


def _kill(now: Lifecycle, why: str, policy: Policy, after: After | None = None) -> Result:
    kill = Kill(now.generation, policy.grace(now.state))
    return _move(now, S.STOPPING, why, kill, after=after or now.after)


def _start(now: Lifecycle, why: str, policy: Policy) -> Result:
    if now.state in {S.STOPPED, S.FAILED, S.BACKOFF}:
        return _launch(now, why, policy, failures=(), cause=None)
    if now.state in {S.STOPPING, S.DRAINING} and now.after == "stay":
        return replace(now, after="restart"), ()
    return now, ()


def _adopt(now: Lifecycle, event: Adopted) -> Result:
    if now.state is not S.STOPPED:
        return now, ()
    probe = Probe(event.generation)
    return _move(now, S.SUSPECT, "adopted", probe, generation=event.generation, probe_fails=0)


def _stop(now: Lifecycle, event: Stop, policy: Policy) -> Result:
    after = event.after
    if now.state in {S.STOPPED, S.FAILED, S.BACKOFF}:
        if after == "restart":
            return _launch(now, event.why, policy, failures=(), cause=None)
        if now.state is S.STOPPED:
            return now, ()
        return _move(now, S.STOPPED, event.why, failures=(), waiting_plan=False, waiting_time=False)
    forgiven = replace(now, failures=()) if after == "restart" else now
    if now.state in SERVING and event.drain_s > 0:
        arm = Arm(now.generation, "drain", event.drain_s)
        return _move(forgiven, S.DRAINING, event.why, arm, after=after)
    if now.state is S.STOPPING:
        return replace(forgiven, after=after), ()
    if now.state is S.DRAINING and event.drain_s > 0:
        return replace(forgiven, after=after), (Arm(now.generation, "drain", event.drain_s),)
    return _kill(forgiven, event.why, policy, after)


def _probe_ok(now: Lifecycle, clock: float) -> Result:
    if now.state is S.STARTING:
        return _move(now, S.READY, "ready", up_since=clock, probe_fails=0, ports_taken=0)
    if now.state is S.SUSPECT:
        up_since = now.up_since if now.up_since is not None else clock
        return _move(now, S.READY, "answers again", up_since=up_since, probe_fails=0)
    return now, ()


def _trouble(now: Lifecycle, event: ProbeFailed | RequestFailed, policy: Policy) -> Result:
    if now.state not in SERVING:
        return now, ()
    is_probe = isinstance(event, ProbeFailed)
    fails = now.probe_fails + 1 if is_probe else now.probe_fails
    if fails >= policy.probe_limit:
        worse = replace(now, probe_fails=fails, cause=CrashCause.UNRESPONSIVE)
        return _kill(worse, f"unresponsive: {event.why}", policy, "retry")
    actions = () if is_probe else (Probe(now.generation),)
    if now.state is S.READY:
        return _move(now, S.SUSPECT, event.why, *actions, probe_fails=fails)
    return replace(now, probe_fails=fails), actions


def _port_taken(now: Lifecycle, event: PortTaken, policy: Policy) -> Result:
    if now.state is not S.STARTING:
        return now, ()
    return _kill(replace(now, cause=CrashCause.PORT_TAKEN), event.why, policy, "retry")


def _deadline(now: Lifecycle, event: Deadline, policy: Policy) -> Result:
    match event.timer, now.state:
        case "start", S.STARTING:
            stalled = replace(now, cause=CrashCause.START_STALLED)
            why = f"not ready after {policy.start_timeout_s:g} s"
            return _kill(stalled, why, policy, "retry")
        case "drain", S.DRAINING:
            return _kill(now, "drain deadline", policy)
        case "backoff", S.BACKOFF:
            return _leave_backoff(replace(now, waiting_time=False), policy)
        case "half_open", S.FAILED:
            return _launch(now, "half-open retry", policy)
    return now, ()


def _replanned(now: Lifecycle, event: Replanned, policy: Policy) -> Result:
    if now.state is not S.BACKOFF:
        return now, ()
    if not event.found:
        return _fail(now, event.why, policy)
    return _leave_backoff(replace(now, waiting_plan=False, why=event.why), policy)


def _leave_backoff(now: Lifecycle, policy: Policy) -> Result:
    if now.waiting_plan or now.waiting_time:
        return now, ()
    return _launch(now, f"restart after {now.cause or 'failure'}", policy)


def _fail(now: Lifecycle, why: str, policy: Policy) -> Result:
    retry = policy.half_open_s is not None and (now.cause is None or now.cause.recoverable)
    arm = (Arm(now.generation, "half_open", policy.half_open_s or 0.0),) if retry else ()
    return _move(now, S.FAILED, why, *arm, waiting_plan=False, waiting_time=False)


def _exited(now: Lifecycle, event: Exited, policy: Policy, clock: float) -> Result:
    if now.state in {S.STOPPING, S.DRAINING} and now.after != "retry":
        if now.after == "restart":
            return _launch(now, "restart requested", policy, cause=None)
        return _move(now, S.STOPPED, now.why if now.state is S.STOPPING else str(event.exit))
    if now.state not in RUNNING:
        return now, ()
    cause = now.cause if now.after == "retry" and now.cause else event.cause
    if cause is CrashCause.PORT_TAKEN and now.ports_taken < policy.port_limit:
        # Somebody was faster between the choice of a port and its use: no fault of the engine.
        lost = replace(now, cause=None, ports_taken=now.ports_taken + 1)
        backoff, announce = _move(lost, S.BACKOFF, f"{cause.value}: {event.exit}")
        launched, actions = _launch(backoff, "again, on another port", policy)
        return launched, (*announce, *actions)
    stable = now.up_since is not None and clock - now.up_since >= policy.stable_s
    recent = () if stable else now.failures
    charged = tuple(t for t in recent if clock - t < policy.restart_window_s)
    failures = (*charged, clock)
    why = f"{cause.value}: {event.exit}" + (f"; {cause.advice}" if cause.advice else "")
    record = replace(now, failures=failures, cause=cause, up_since=None, after="stay")
    if not cause.recoverable:
        return _fail(record, why, policy)
    if len(failures) > policy.restart_limit:
        spent = f"{why}; {policy.restart_limit} restarts in {policy.restart_window_s:g} s are spent"
        return _fail(record, spent, policy)
    delay = policy.delay(len(failures), event.luck)
    if delay == 0 and not cause.needs_smaller_plan:
        backoff, announce = _move(record, S.BACKOFF, why)
        launched, actions = _leave_backoff(backoff, policy)
        return launched, (*announce, *actions)
    replan = (Replan(now.generation, cause),) if cause.needs_smaller_plan else ()
    return _move(
        record,
        S.BACKOFF,
        why,
        *replan,
        Arm(now.generation, "backoff", delay),
        waiting_plan=bool(replan),
        waiting_time=True,
    )
