"""Whether a failed request is tried once more, elsewhere. Pure.

Only what can succeed on another replica is repeated, and only within a budget: in the last ten
seconds at most a fifth as many retries as requests, so that engines that are all in trouble get a
fifth more work and not twice as much. Three are always allowed: a few requests have no fifth.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from orchestrator.errors import (
    EngineBusy,
    EngineError,
    QueueFull,
    RequestError,
    UpstreamBroken,
    UpstreamInvalid,
    UpstreamTimeout,
)

_ALWAYS = 3
_ENGINES_FAULT = (UpstreamBroken, UpstreamInvalid, UpstreamTimeout)


def engines_fault(error: BaseException) -> bool:
    """Whether an engine that does this is in doubt: it broke off, stalled, or sent nonsense."""
    return isinstance(error, _ENGINES_FAULT)


def counts_as_failure(error: BaseException) -> bool:
    """Whether it counts towards leaving the replica out: the above, and an engine's own 5xx."""
    return engines_fault(error) or isinstance(error, EngineError | EngineBusy)


def may_succeed_elsewhere(error: RequestError) -> bool:
    """Whether another replica may answer what this one did not; QueueFull is the engine's own."""
    return counts_as_failure(error) or isinstance(error, QueueFull)


@dataclass
class _Second:
    """Counts of one second of the clock."""

    at: int
    requests: int = 0
    retries: int = 0


class RetryBudget:
    """Counts requests and retries of the last `window_s` seconds."""

    def __init__(self, share: float = 0.2, window_s: int = 10) -> None:
        self._share, self._window = share, window_s
        self._seconds: deque[_Second] = deque()

    def asked(self, now: float) -> None:
        """Count a request; `now` is monotonic seconds."""
        self._second(now).requests += 1

    def take(self, now: float) -> bool:
        """Whether a retry is within the budget; it is counted if so."""
        second = self._second(now)
        requests = sum(each.requests for each in self._seconds)
        retries = sum(each.retries for each in self._seconds)
        if retries + 1 > max(_ALWAYS, self._share * requests):
            return False
        second.retries += 1
        return True

    def _second(self, now: float) -> _Second:
        at = int(now)
        if self._seconds and self._seconds[-1].at == at:
            return self._seconds[-1]
        while self._seconds and self._seconds[0].at <= at - self._window:
            self._seconds.popleft()
        if not self._seconds or self._seconds[-1].at < at:
            self._seconds.append(_Second(at))
        return self._seconds[-1]
