"""The lifecycle of one supervised process, as a pure function.

::

                    Start                 ProbeOk
       STOPPED ───────────────▶ STARTING ─────────▶ READY ◀────────┐
        ▲ ▲ │ Adopted (awake)   ▲  │ │               │ ProbeFailed │ ProbeOk
        │ │ └───────────────────┼──┼─┼──▶ SUSPECT ◀──┘ RequestFailed
        │ │                Start│  │ │       │ └───────────────────┘
        │ │            (wake up)│  │ │       │ `probe_limit` probes failed in a row; Stalled
        │ │ Exited              │  │ │       ▼
        │ ├────────────── SLEEPING │ │       │       READY, SUSPECT ──Stop, Sleep──▶ DRAINING
        │ │                 ▲ │    │ │       │       DRAINING ──Idle, deadline──▶ STOPPING
        │ │           Slept │ │Stop, ProbeFailed     DRAINING ──Start (no sleep now)──▶ SUSPECT
        │ │        DRAINING ┘ ▼    ▼ │       │
        │ └───────────── STOPPING ◀──│ ◀─────┘       STARTING ──Stop, Stalled──▶ STOPPING
        │  Exited              │     │ Exited
        │                      ▼     ▼
        └──────── FAILED ◀──── BACKOFF ──deadline and plan there──▶ STARTING
           Stop     │ half-open                FAILED: a cause that repeats itself, no smaller
                    └──▶ STARTING              plan, the restart budget spent, or a failed trial

`step(now, event, policy, clock)` returns the next record and the actions to carry out. It does no
I/O and reads no clock. Events of an older generation are dropped. An exit nobody asked for is a
failure, whatever its code; one in its sleep costs nobody anything, and what is asleep is not wanted
now, so it is not started again until it is. Probes and requests have streaks of their own: probes
that fail end it, requests that break have a canary sent, whose failure does. The transition that
must not exist: FAILED to anything by itself, but for the half-open retry that the policy names,
which has one try. Attempts are forgotten after `stable_s` in service; starts that a person asks for
are never charged, nor are a few in a row in which a stranger took the port. What cannot be put to
sleep is stopped: that frees its memory too.
"""

from __future__ import annotations

from orchestrator.supervision.events import (
    RUNNING,
    SERVING,
    Action,
    Adopted,
    After,
    Announce,
    Answered,
    Arm,
    Canary,
    Deadline,
    Event,
    Exited,
    Idle,
    Kill,
    Launch,
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
    StallKind,
    Start,
    State,
    Stop,
    Timer,
    WakeFailed,
    WakeUp,
    Woken,
)
from orchestrator.supervision.lifecycle.machine import TRANSITIONS, step

__all__ = [
    "RUNNING",
    "SERVING",
    "TRANSITIONS",
    "Action",
    "Adopted",
    "After",
    "Announce",
    "Answered",
    "Arm",
    "Canary",
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
    "PutToSleep",
    "Replan",
    "Replanned",
    "RequestFailed",
    "Sleep",
    "SleepFailed",
    "Slept",
    "StallKind",
    "Stalled",
    "Start",
    "State",
    "Stop",
    "Timer",
    "WakeFailed",
    "WakeUp",
    "Woken",
    "step",
]
