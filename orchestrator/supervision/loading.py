"""Whether a start gets on, and how far it is, from what its processes do and log. Pure.

There is no limit for a start as a whole: a large model may take an hour. It has stalled when
nothing has grown for `stall_s`: no line in the log, no megabyte read, none of memory. Processor
time alone (weights that are repacked, graphs that are compiled) counts four times as long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine_launchers.watch import PhaseRule
from orchestrator.supervision.silence import BUSY, Silence

LAUNCHING = "launching"
"""The phase of a start that has told nothing yet."""
_NOTICEABLE = 1 << 20
_BUSY_STALLS = 4


@dataclass(frozen=True)
class Evidence:
    """What a tree of processes has done since it was started. Sizes in bytes, time in seconds.

    `logged` leaves out what our own probes put into the log; `memory` is held now.
    """

    logged: int = 0
    read: int = 0
    memory: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A step of a start, and the percentage of the whole that is done."""

    name: str
    percent: float


@dataclass(frozen=True)
class Load:
    """One start, as far as it was watched. `marks` is the most of each that counted as growth,
    `spent` the seconds of each phase that is over or under way."""

    seconds: float = 0.0
    silence: Silence = field(default_factory=Silence)
    marks: Evidence = field(default_factory=Evidence)
    cpu_s: float = 0.0
    phase: Phase | None = None
    spent: Mapping[str, float] = field(default_factory=dict)

    def after(self, seconds: float, seen: Evidence, phase: Phase | None, stall_s: float) -> Load:
        """The start `seconds` later. A phase never goes back."""
        grown = (
            seen.logged > self.marks.logged,
            seen.read >= self.marks.read + _NOTICEABLE,
            seen.memory >= self.marks.memory + _NOTICEABLE,
        )
        moved = any(grown)
        marks = Evidence(
            max(seen.logged, self.marks.logged),
            seen.read if grown[1] else self.marks.read,
            seen.memory if grown[2] else self.marks.memory,
        )
        busy = seen.cpu_s - self.cpu_s >= BUSY * seconds
        now = self.phase.name if self.phase else LAUNCHING
        further = phase and (self.phase is None or phase.percent >= self.phase.percent)
        return Load(
            seconds=self.seconds + seconds,
            silence=self.silence.after(seconds, moved, busy, _BUSY_STALLS * stall_s),
            marks=marks,
            cpu_s=max(seen.cpu_s, self.cpu_s),
            phase=phase if further else self.phase,
            spent={**self.spent, now: self.spent.get(now, 0.0) + seconds},
        )

    def stalled(self, stall_s: float) -> str | None:
        """Why it is given up, None while it gets on."""
        if self.silence.quiet_s < stall_s:
            return None
        at = f" at {self.phase.name}" if self.phase else ""
        busy = self.silence.unproved_s - self.silence.quiet_s
        idle = f", after {busy:.0f} s of nothing but processor time" if busy >= stall_s else ""
        return (
            f"not ready, and nothing logged, read or loaded for {self.silence.quiet_s:.1f} s{at}"
            f"{idle}"
        )


def by_phase(load: Load | None, seconds: float) -> dict[str, float]:
    """The seconds of a start that is over, by phase: what was not watched belongs to the last."""
    spent = dict(load.spent) if load else {}
    last = load.phase.name if load and load.phase else LAUNCHING
    rest = seconds - sum(spent.values())
    return {**spent, last: max(0.0, spent.get(last, 0.0) + rest)}


def phase(lines: Sequence[str], rules: Sequence[PhaseRule]) -> Phase | None:
    """The last phase that `lines` of a log tell of, None where they tell of none."""
    for line in reversed(lines):
        for rule in reversed(rules):
            if found := re.search(rule.pattern, line):
                return Phase(rule.name, _percent(rule, found))
    return None


def _percent(rule: PhaseRule, found: re.Match[str]) -> float:
    inner = found.groupdict().get("percent")
    if inner is None or rule.until is None:
        return rule.percent
    share = min(100.0, float(inner)) / 100
    return round(rule.percent + share * (rule.until - rule.percent), 1)
