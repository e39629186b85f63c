"""Bodies that kill engines: suspected, found guilty twice, kept out for a while. Pure.

A request that breaks makes its body a suspect. If the supervisor's next word is that the engine
crashed, the body has a kill to its name; the two come in either order. An engine that somebody
killed, or that ran out of memory, is no request's fault: the one would be done again by nobody, the
other is cured by a smaller plan. A body that is answered in full is cleared. With two kills it is
refused for ten minutes. Bodies are known by their hash alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from engine_launchers.base import CrashCause

Key = tuple[str, int]
_LIMIT = 4096  # bodies remembered; the oldest are forgotten first
_NOBODYS = frozenset(
    {CrashCause.KILLED, CrashCause.GPU_LOST, CrashCause.DRIVER_MISMATCH, CrashCause.PORT_TAKEN}
)


def fingerprint(body: bytes) -> str:
    """What a body is known by."""
    return hashlib.sha256(body).hexdigest()


def can_be_a_requests_fault(cause: CrashCause) -> bool:
    """Whether an engine that ended so may have been ended by what it was asked."""
    return cause not in _NOBODYS and not cause.needs_smaller_plan


@dataclass
class _Record:
    """One body: breaks that nobody explained yet, by replica, and the clocks of its kills."""

    breaks: dict[Key, float] = field(default_factory=dict)
    kills: list[float] = field(default_factory=list)


class Quarantine:
    """What is known of suspects. `now` is monotonic seconds."""

    def __init__(self, kills: int = 2, seconds: float = 600.0, doubt_s: float = 30.0) -> None:
        self._kills, self._seconds, self._doubt_s = kills, seconds, doubt_s
        self._records: dict[str, _Record] = {}
        self._lost: dict[Key, tuple[bool, float]] = {}

    @property
    def empty(self) -> bool:
        """Whether no body is remembered: nothing is refused then."""
        return not self._records

    def broke(self, key: Key, body: str, now: float) -> None:
        """A request with `body` broke on replica `key`."""
        record = self._records.pop(body, None) or _Record()
        self._records[body] = record
        while len(self._records) > _LIMIT:
            del self._records[next(iter(self._records))]
        guilty, at = self._lost.get(key, (None, 0.0))
        if guilty is None or now - at > self._doubt_s:
            record.breaks[key] = now
        elif guilty:
            record.kills.append(now)

    def lost(self, key: Key, cause: CrashCause | None, now: float) -> None:
        """Replica `key` is gone; None: not by a crash."""
        guilty = cause is not None and can_be_a_requests_fault(cause)
        self._lost = {k: v for k, v in self._lost.items() if now - v[1] <= self._doubt_s}
        self._lost[key] = (guilty, now)
        for record in self._records.values():
            at = record.breaks.pop(key, None)
            if guilty and at is not None and now - at <= self._doubt_s:
                record.kills.append(now)

    def answered(self, body: str) -> bool:
        """`body` got its whole answer: whatever happened, it was not the cause. Whether it was
        under suspicion."""
        return self._records.pop(body, None) is not None

    def may_be_replayed(self, body: str, now: float) -> bool:
        """Whether a body whose request just broke may be tried on another replica."""
        record = self._records.get(body)
        if record is None:
            return True
        doubts = sum(now - at <= self._doubt_s for at in record.breaks.values())
        return doubts + len(self._recent(record.kills, now)) <= 1

    def refused_for(self, body: str, now: float) -> float | None:
        """Seconds that `body` is still refused for; None where it is not."""
        record = self._records.get(body)
        if record is None:
            return None
        kills = self._recent(record.kills, now)
        if len(kills) < self._kills:
            return None
        return max(kills) + self._seconds - now

    def _recent(self, kills: Collection[float], now: float) -> list[float]:
        return [at for at in kills if now - at < self._seconds]
