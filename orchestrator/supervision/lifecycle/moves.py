"""The moves that several events make."""

from __future__ import annotations

from dataclasses import replace

from engine_launchers.base import CrashCause
from orchestrator.supervision.events import (
    Action,
    After,
    Announce,
    Kill,
    Launch,
    Lifecycle,
    Policy,
    StallKind,
    State,
)

S = State
Result = tuple[Lifecycle, tuple[Action, ...]]


def move(now: Lifecycle, new: State, why: str, *actions: Action, **changes: object) -> Result:
    """To another state, announced."""
    moved = replace(now, state=new, why=why, **changes)  # type: ignore[arg-type]
    return moved, (*actions, Announce(now.state, new, why))


def launch(now: Lifecycle, why: str, **changes: object) -> Result:
    """The next generation, with nothing of the last one but what it is charged with."""
    generation = now.generation + 1
    return rest(now, S.STARTING, why, Launch(generation), generation=generation, **changes)


def kill(
    now: Lifecycle, why: str, policy: Policy, after: After | None = None, stuck: bool = False
) -> Result:
    """TERM now, KILL after the grace; `after` says what comes then."""
    stuck = stuck or now.state in {S.STARTING, S.SLEEPING}
    kill = Kill(now.generation, policy.grace(stuck))
    ends = {"after": after or now.after, "asking": None, "level": None}
    return move(now, S.STOPPING, why, kill, **ends)


def give_up(now: Lifecycle, why: str, kind: StallKind, policy: Policy) -> Result:
    """End what hangs, and try again."""
    cause = CrashCause.START_STALLED if kind == "start" else CrashCause.UNRESPONSIVE
    hung = replace(now, cause=cause, stall=kind)
    return kill(hung, why, policy, "retry", stuck=True)


def rest(now: Lifecycle, new: State, why: str, *actions: Action, **changes: object) -> Result:
    """To a state without a process: what was true of the last one is forgotten."""
    bare = Lifecycle(
        generation=now.generation, failures=now.failures, cause=now.cause, trial=now.trial
    )
    rested = replace(bare, state=new, why=why, **changes)  # type: ignore[arg-type]
    return rested, (*actions, Announce(now.state, new, why))
