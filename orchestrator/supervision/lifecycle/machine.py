"""`step`: what each event does to the record, in which state. The package says the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from engine_launchers.base import CrashCause
from orchestrator.supervision.events import (
    RUNNING,
    SERVING,
    Action,
    Adopted,
    After,
    Answered,
    Arm,
    Canary,
    Deadline,
    Event,
    Exited,
    Idle,
    Lifecycle,
    Policy,
    PortTaken,
    Probe,
    ProbeFailed,
    ProbeOk,
    PutToSleep,
    Replan,
    Replanned,
    RequestFailed,
    Sleep,
    SleepFailed,
    Slept,
    Stalled,
    Start,
    State,
    Stop,
    WakeFailed,
    WakeUp,
    Woken,
)
from orchestrator.supervision.lifecycle.moves import Result, give_up, kill, launch, move, rest

S = State
TRANSITIONS: frozenset[tuple[State, State]] = frozenset(
    {
        (S.STOPPED, S.STARTING), (S.STOPPED, S.SUSPECT), (S.STOPPED, S.SLEEPING),
        (S.STARTING, S.READY), (S.STARTING, S.STOPPING), (S.STARTING, S.BACKOFF),
        (S.STARTING, S.FAILED),
        (S.READY, S.SUSPECT), (S.READY, S.DRAINING), (S.READY, S.STOPPING),
        (S.READY, S.BACKOFF), (S.READY, S.FAILED),
        (S.SUSPECT, S.READY), (S.SUSPECT, S.DRAINING), (S.SUSPECT, S.STOPPING),
        (S.SUSPECT, S.BACKOFF), (S.SUSPECT, S.FAILED),
        (S.DRAINING, S.STOPPING), (S.DRAINING, S.STOPPED), (S.DRAINING, S.STARTING),
        (S.DRAINING, S.SLEEPING), (S.DRAINING, S.SUSPECT),
        (S.SLEEPING, S.STARTING), (S.SLEEPING, S.STOPPING), (S.SLEEPING, S.STOPPED),
        (S.STOPPING, S.STOPPED), (S.STOPPING, S.STARTING), (S.STOPPING, S.BACKOFF),
        (S.STOPPING, S.FAILED),
        (S.BACKOFF, S.STARTING), (S.BACKOFF, S.STOPPED), (S.BACKOFF, S.FAILED),
        (S.FAILED, S.STARTING), (S.FAILED, S.STOPPED),
    }
)  # fmt: skip
_ANYONES = Start | Stop | Sleep | Adopted  # orders: they are for whatever runs now


def step(now: Lifecycle, event: Event, policy: Policy, clock: float) -> Result:
    """The next record and what to do. `clock` is monotonic seconds."""
    if not isinstance(event, _ANYONES) and event.generation != now.generation:
        return now, ()
    match event:
        case Start():
            return _start(now, event.why)
        case Adopted():
            return _adopt(now, event)
        case Stop():
            return _stop(now, event, policy)
        case Sleep():
            return _sleep(now, event)
        case Slept() | SleepFailed():
            return _slept(now, event, policy)
        case Woken() | WakeFailed():
            return _woken(now, event, policy)
        case ProbeOk():
            return _probe_ok(now, clock)
        case ProbeFailed():
            return _probe_failed(now, event, policy)
        case PortTaken():
            return _port_taken(now, event, policy)
        case RequestFailed():
            return _request_failed(now, event, policy)
        case Answered():
            return replace(now, request_fails=0), ()
        case Stalled():
            return _stalled(now, event, policy)
        case Idle():
            if now.state is S.DRAINING:
                return _drained(now, "drained", policy)
        case Deadline():
            return _deadline(now, event, policy)
        case Replanned():
            return _replanned(now, event, policy)
        case Exited():
            return _exited(now, event, policy, clock)
    return now, ()


def _start(now: Lifecycle, why: str) -> Result:
    if now.state in {S.STOPPED, S.FAILED, S.BACKOFF}:
        return launch(now, why, failures=(), cause=None, trial=False)
    if now.state is S.SLEEPING:
        return _wake(now, why)
    if now.state is S.DRAINING and now.after == "sleep":
        if now.asking == "sleep":
            return replace(now, after="wake"), ()
        probe = Probe(now.generation)
        return move(now, S.SUSPECT, why, probe, after="stay", level=None, probe_fails=0)
    if now.state in {S.STOPPING, S.DRAINING} and now.after == "stay":
        return replace(now, after="restart"), ()
    return now, ()


def _adopt(now: Lifecycle, event: Adopted) -> Result:
    if now.state is not S.STOPPED or event.generation < now.generation:
        return now, ()
    if event.level is not None:
        asleep = {"generation": event.generation, "level": event.level}
        return move(now, S.SLEEPING, "adopted in its sleep", **asleep)
    probe = Probe(event.generation)
    return move(now, S.SUSPECT, "adopted", probe, generation=event.generation, probe_fails=0)


def _stop(now: Lifecycle, event: Stop, policy: Policy) -> Result:
    after = event.after
    if now.state in {S.STOPPED, S.FAILED, S.BACKOFF}:
        if after == "restart":
            return launch(now, event.why, failures=(), cause=None, trial=False)
        if now.state is S.STOPPED:
            return now, ()
        return rest(now, S.STOPPED, event.why, failures=(), trial=False)
    forgiven = replace(now, failures=(), trial=False) if after == "restart" else now
    if now.state in SERVING and event.drain_s > 0:
        arm = Arm(now.generation, "drain", event.drain_s)
        return move(forgiven, S.DRAINING, event.why, arm, after=after)
    if now.state is S.STOPPING:
        return replace(forgiven, after=after), ()
    if now.state is S.DRAINING and event.drain_s > 0 and now.asking is None:
        arm = Arm(now.generation, "drain", event.drain_s)
        return replace(forgiven, after=after, why=event.why, level=None), (arm,)
    return kill(forgiven, event.why, policy, after)


# --- sleep ------------------------------------------------------------------------------------


def _sleep(now: Lifecycle, event: Sleep) -> Result:
    if now.state not in SERVING:
        return now, ()
    arm = Arm(now.generation, "drain", event.drain_s)
    return move(now, S.DRAINING, event.why, arm, after="sleep", level=event.level)


def _drained(now: Lifecycle, why: str, policy: Policy) -> Result:
    """Nothing is in flight any more, or had its time: end it, or put it to sleep."""
    if now.after not in {"sleep", "wake"} or now.level is None:
        return kill(now, why, policy)
    if now.asking == "sleep":
        return now, ()
    return replace(now, asking="sleep"), (PutToSleep(now.generation, now.level),)


def _slept(now: Lifecycle, event: Slept | SleepFailed, policy: Policy) -> Result:
    if now.state is not S.DRAINING or now.asking != "sleep":
        return now, ()
    if isinstance(event, SleepFailed):
        after: After = "restart" if now.after == "wake" else "stay"
        return kill(now, f"could not sleep: {event.why}", policy, after, stuck=True)
    wanted = now.after == "wake"
    rests = {"asking": None, "after": "stay", "up_since": None, "probe_fails": 0}
    asleep, told = move(now, S.SLEEPING, now.why, **rests)
    if not wanted:
        return asleep, told
    awake, woke = _wake(asleep, "wanted again")
    return awake, (*told, *woke)


def _wake(now: Lifecycle, why: str) -> Result:
    wake = WakeUp(now.generation, now.level or 0)
    return move(now, S.STARTING, why, wake, asking="wake", probe_fails=0, request_fails=0)


def _woken(now: Lifecycle, event: Woken | WakeFailed, policy: Policy) -> Result:
    if now.state is not S.STARTING or now.asking != "wake":
        return now, ()
    if isinstance(event, WakeFailed):
        return give_up(now, f"could not wake up: {event.why}", "wake", policy)
    return replace(now, asking=None, level=None), (Probe(now.generation),)


# --- health -----------------------------------------------------------------------------------


def _probe_ok(now: Lifecycle, clock: float) -> Result:
    if now.state is S.STARTING and now.asking is None:
        return move(now, S.READY, "ready", up_since=clock, probe_fails=0, ports_taken=0)
    if now.state is S.SUSPECT:
        up_since = now.up_since if now.up_since is not None else clock
        return move(now, S.READY, "answers again", up_since=up_since, probe_fails=0)
    return (replace(now, probe_fails=0) if now.state is S.SLEEPING else now), ()


def _probe_failed(now: Lifecycle, event: ProbeFailed, policy: Policy) -> Result:
    if now.state not in SERVING | {S.SLEEPING}:
        return now, ()
    worse = replace(now, probe_fails=now.probe_fails + 1)
    if worse.probe_fails >= policy.probe_limit:
        why = f"unresponsive: {event.why}"
        if now.state is S.SLEEPING:  # nobody wants it now
            return kill(replace(worse, stall="probes"), why, policy, "stay")
        return give_up(worse, why, "probes", policy)
    if now.state is S.READY:
        return move(worse, S.SUSPECT, event.why)
    return worse, ()


def _port_taken(now: Lifecycle, event: PortTaken, policy: Policy) -> Result:
    if now.state is not S.STARTING:
        return now, ()
    return kill(replace(now, cause=CrashCause.PORT_TAKEN), event.why, policy, "retry")


def _request_failed(now: Lifecycle, event: RequestFailed, policy: Policy) -> Result:
    """Never the end by itself: requests may be at fault, and a canary tells."""
    if now.state not in SERVING:
        return now, ()
    worse = replace(now, request_fails=now.request_fails + 1)
    ask: tuple[Action, ...] = (Probe(now.generation),)
    if worse.request_fails >= policy.request_limit:
        worse, ask = replace(worse, request_fails=0), (*ask, Canary(now.generation))
    return move(worse, S.SUSPECT, event.why, *ask) if now.state is S.READY else (worse, ask)


def _stalled(now: Lifecycle, event: Stalled, policy: Policy) -> Result:
    if now.state is S.STARTING:
        kind: Literal["wake", "start"] = "wake" if now.asking == "wake" else "start"
        return give_up(now, event.why, kind, policy)
    if now.state in SERVING:
        return give_up(now, event.why, event.kind, policy)
    if now.state is S.DRAINING and now.asking is None:
        after: After = "stay" if now.after in {"sleep", "wake"} else now.after
        return kill(replace(now, stall=event.kind), event.why, policy, after, stuck=True)
    return now, ()


def _deadline(now: Lifecycle, event: Deadline, policy: Policy) -> Result:
    match event.timer, now.state:
        case "drain", S.DRAINING:
            return _drained(now, "drain deadline", policy)
        case "backoff", S.BACKOFF:
            return _leave_backoff(replace(now, waiting_time=False))
        case "half_open", S.FAILED:
            return launch(now, "half-open retry", trial=True)
    return now, ()


# --- ends, and what comes after ---------------------------------------------------------------


def _replanned(now: Lifecycle, event: Replanned, policy: Policy) -> Result:
    if now.state is not S.BACKOFF:
        return now, ()
    if not event.found:
        return _fail(now, event.why, policy)
    return _leave_backoff(replace(now, waiting_plan=False, why=event.why))


def _leave_backoff(now: Lifecycle) -> Result:
    if now.waiting_plan or now.waiting_time:
        return now, ()
    smaller = now.cause is not None and now.cause.needs_smaller_plan
    told = f": {now.why}" if smaller else ""
    return launch(now, f"restart after {now.cause or 'failure'}{told}")


def _fail(now: Lifecycle, why: str, policy: Policy) -> Result:
    retry = policy.half_open_s is not None and (now.cause is None or now.cause.recoverable)
    arm = (Arm(now.generation, "half_open", policy.half_open_s or 0.0),) if retry else ()
    return rest(now, S.FAILED, why, *arm, trial=False)


def _exited(now: Lifecycle, event: Exited, policy: Policy, clock: float) -> Result:
    if now.state in {S.STOPPING, S.DRAINING} and now.after != "retry":
        if now.after in {"restart", "wake"}:
            return launch(now, "restart requested", cause=None)
        return rest(now, S.STOPPED, now.why if now.state is S.STOPPING else str(event.exit))
    if now.state is S.SLEEPING:
        why = f"ended in its sleep: {event.cause.value}: {event.exit}"
        return rest(now, S.STOPPED, why, cause=event.cause)
    if now.state not in RUNNING:
        return now, ()
    return _crashed(now, event, policy, clock)


def _crashed(now: Lifecycle, event: Exited, policy: Policy, clock: float) -> Result:
    cause = now.cause if now.after == "retry" and now.cause else event.cause
    if cause is CrashCause.PORT_TAKEN and now.ports_taken < policy.port_limit:
        # Somebody was faster between the choice of a port and its use: no fault of the engine.
        backoff, announce = rest(now, S.BACKOFF, f"{cause.value}: {event.exit}", cause=None)
        taken = now.ports_taken + 1
        launched, actions = launch(backoff, "again, on another port", ports_taken=taken)
        return launched, (*announce, *actions)
    stable = now.up_since is not None and clock - now.up_since >= policy.stable_s
    recent = () if stable else now.failures
    charged = tuple(t for t in recent if clock - t < policy.restart_window_s)
    failures = (*charged, clock)
    how = now.why if now.stall else str(event.exit)
    why = f"{cause.value}: {how}" + (f"; {cause.advice}" if cause.advice else "")
    record = replace(now, failures=failures, cause=cause)
    if not cause.recoverable:
        return _fail(record, why, policy)
    if now.trial and not stable:
        return _fail(record, f"{why}; the retry failed too", policy)
    if len(failures) > policy.restart_limit:
        spent = f"{why}; {policy.restart_limit} restarts in {policy.restart_window_s:g} s are spent"
        return _fail(record, spent, policy)
    delay = policy.delay(len(failures), event.luck)
    record = replace(record, trial=False)
    if delay == 0 and not cause.needs_smaller_plan:
        backoff, announce = rest(record, S.BACKOFF, why)
        launched, actions = _leave_backoff(backoff)
        return launched, (*announce, *actions)
    replan = (Replan(now.generation, cause),) if cause.needs_smaller_plan else ()
    return rest(
        record,
        S.BACKOFF,
        why,
        *replan,
        Arm(now.generation, "backoff", delay),
        waiting_plan=bool(replan),
        waiting_time=True,
    )
