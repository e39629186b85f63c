"""Whether an engine with work gets on with it. Pure.

Four levels tell of health: the process lives, HTTP answers, work moves, a canary sings. This is the
third. Work moves when something is relayed to a client or a counter of the engine changes. An
honest prefill may show neither for minutes, but it computes: processor time counts for as long as
the longest one may take. Where nothing counts there is doubt, in which a canary is sent (the
fourth level); a doubt that lasts is a stall.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.supervision.silence import BUSY, Silence

_STALL = 0.72  # of the time in which a hang has to be found: the rest goes into looking
_DOUBT = 0.4


class Verdict(StrEnum):
    """What one look at an engine says."""

    IDLE = "idle"
    MOVING = "moving"
    DOUBT = "doubt"
    STALLED = "stalled"


@dataclass(frozen=True)
class Work:
    """What the gateways know: requests whose next word the engine owes, events relayed so far."""

    owed: int = 0
    relayed: int = 0


@dataclass(frozen=True)
class Signs:
    """One look. `counters` is None where they could not be read; `cpu_s` is of the whole tree."""

    work: Work
    counters: tuple[float, ...] | None
    cpu_s: float


@dataclass(frozen=True)
class Limits:
    """Seconds: in which a hang has to be found, and that the longest honest prefill may take."""

    hang_s: float
    prefill_s: float

    @property
    def look_s(self) -> float:
        """Pause between two looks."""
        return self.hang_s / 12


@dataclass(frozen=True)
class Watched:
    """What is remembered between two looks."""

    signs: Signs | None = None
    silence: Silence = field(default_factory=Silence)

    def sung(self) -> Watched:
        """The same after a canary was answered."""
        return Watched(self.signs, Silence())


def judge(before: Watched, signs: Signs, seconds: float, limits: Limits) -> tuple[Watched, Verdict]:
    """What one look says, `seconds` after the one before.

    A pause that is longer than it should be tells of a machine, or a watcher, that stood still
    itself: it counts as one of usual length.
    """
    if signs.work.owed == 0:
        return Watched(), Verdict.IDLE
    old = before.signs
    if old is None:
        return Watched(signs), Verdict.MOVING
    if signs.counters is None:
        signs = Signs(signs.work, old.counters, signs.cpu_s)
    counted = old.counters is not None and signs.counters != old.counters
    moved = counted or signs.work.relayed != old.work.relayed
    busy = signs.cpu_s - old.cpu_s >= BUSY * seconds
    counts = min(seconds, 2 * limits.look_s)
    silence = before.silence.after(counts, moved, busy, limits.prefill_s)
    return Watched(signs, silence), _verdict(silence, limits)


def _verdict(silence: Silence, limits: Limits) -> Verdict:
    if silence.quiet_s >= _STALL * limits.hang_s:
        return Verdict.STALLED
    return Verdict.DOUBT if silence.quiet_s >= _DOUBT * limits.hang_s else Verdict.MOVING
