"""A token bucket: so much per minute, a minute's worth at once. Pure; the clock is handed in."""

from __future__ import annotations


class Bucket:
    """Holds up to `per_minute`, and fills at that rate. `now` is monotonic seconds.

    What is asked for is charged at once by an estimate, and put right when the truth is known; so a
    bucket can owe. What is larger than the whole bucket passes when the bucket is full, since it
    would never pass otherwise, and leaves a debt that keeps the next one waiting.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._size, self._rate = per_minute, per_minute / 60
        self._level, self._at = per_minute, now

    def wait_for(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken; 0 is now."""
        self._fill(now)
        return max(0.0, min(amount, self._size) - self._level) / self._rate

    def take(self, amount: float, now: float) -> None:
        """Charge `amount`, into debt if need be; a negative one is given back."""
        self._fill(now)
        self._level = min(self._size, self._level - amount)

    def resized(self, per_minute: float, now: float) -> Bucket:
        """A bucket of another size that has used as much as this one."""
        self._fill(now)
        other = Bucket(per_minute, now)
        other.take(self._size - self._level, now)
        return other

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._level = min(self._size, self._level + passed * self._rate)
        self._at = max(self._at, now)
