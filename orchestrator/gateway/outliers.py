"""Which replicas of a model are left out for a while because requests fail on them. Pure.

Five failures in a row eject a replica for 30 s, the next time for 60 s, and so on. Never more than
half of the replicas are out, so the only one never is. When none is left that works (all ejected,
or failing without a place among the ejected), all are tried again: a bad answer is no worse than
none. Who comes back is on probation: one more failure and it is out again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

Key = tuple[str, int]
"""A replica's id and generation."""


@dataclass(frozen=True)
class OutlierPolicy:
    """Failures in a row that eject; seconds times how often; the longest; the largest share."""

    limit: int = 5
    base_s: float = 30.0
    max_s: float = 300.0
    share: float = 0.5


@dataclass
class _Record:
    """Failures in a row, ejections so far, and the clock at which the last of them ends."""

    streak: int = 0
    times: int = 0
    until: float = 0.0


class Outliers:
    """The record of one model's replicas. `now` is monotonic seconds."""

    def __init__(self, policy: OutlierPolicy | None = None) -> None:
        self._policy = policy or OutlierPolicy()
        self._records: dict[Key, _Record] = {}

    def failed(self, key: Key, among: Collection[Key], now: float) -> float | None:
        """Count a failure of `key`; the seconds that it is ejected for, None where it is not.

        `among` are the replicas that take requests, `key` one of them or on its way out.
        """
        policy = self._policy
        record = self._records.setdefault(key, _Record())
        record.streak += 1
        out = sum(self._is_out(other, now) for other in among)
        room = out + 1 <= policy.share * len(among)
        if record.streak < policy.limit or self._is_out(key, now) or not room:
            return None
        quiet = now - record.until > policy.max_s
        record.times = 1 if quiet else record.times + 1
        seconds = min(policy.base_s * record.times, policy.max_s)
        record.until = now + seconds
        record.streak = policy.limit - 1
        return seconds

    def succeeded(self, key: Key) -> bool:
        """A whole answer came from `key`: it works, whatever was thought of it, which it tells."""
        record = self._records.get(key)
        if record is None or not (record.streak or record.until):
            return False
        record.streak, record.until = 0, 0.0
        return True

    def usable(self, among: Collection[Key], now: float) -> set[Key]:
        """Those of `among` that may be tried; all of them when none is good."""
        good = {key for key in among if not self._is_bad(key, now)}
        return {key for key in among if not self._is_out(key, now)} if good else set(among)

    @property
    def quiet(self) -> bool:
        """Whether nothing was ever held against any of them."""
        return not self._records

    def out(self, now: float) -> int:
        """How many are ejected."""
        return sum(self._is_out(key, now) for key in self._records)

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all but `keys`."""
        self._records = {key: each for key, each in self._records.items() if key in keys}

    def _is_out(self, key: Key, now: float) -> bool:
        record = self._records.get(key)
        return record is not None and record.until > now

    def _is_bad(self, key: Key, now: float) -> bool:
        record = self._records.get(key)
        return record is not None and (record.until > now or record.streak >= self._policy.limit)
