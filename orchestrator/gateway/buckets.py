"""A token bucket: so much per minute, a minute's worth at once. Pure; the clock is handed in."""

from __future__ import annotations

from orchestrator.gateway.books import OwnPurse, Purse


class Bucket:
    """Holds up to `per_minute`, and fills at that rate. `now` is monotonic seconds.

    What is asked for is charged at once by an estimate, and put right when the truth is known; so a
    bucket can owe. What is larger than the whole bucket passes when the bucket is full, since it
    would never pass otherwise, and leaves a debt that keeps the next one waiting. `purse` remembers
    what was taken: another bucket with the same purse has used as much, whatever its size.
    """

    def __init__(self, per_minute: float, purse: Purse | None = None) -> None:
        self._size, self._rate = per_minute, per_minute / 60
        self._purse = purse or OwnPurse()

    def wait_for(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken; 0 is now."""
        self._fill(now)
        return max(0.0, self._purse.used + min(amount, self._size) - self._size) / self._rate

    def take(self, amount: float, now: float) -> None:
        """Charge `amount`, into debt if need be; a negative one is given back."""
        self._fill(now)
        self._purse.used = max(0.0, self._purse.used + amount)

    def resized(self, per_minute: float, now: float) -> Bucket:
        """A bucket of another size that has used as much as this one."""
        self._fill(now)
        return Bucket(per_minute, self._purse)

    def _fill(self, now: float) -> None:
        purse = self._purse
        if now > purse.at:
            purse.used = max(0.0, purse.used - (now - purse.at) * self._rate)
            purse.at = now
