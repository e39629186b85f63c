"""For how long something has shown no sign of life. Pure."""

from __future__ import annotations

from dataclasses import dataclass

BUSY = 0.05
"""Processor seconds a second from which a tree of processes counts as busy: what answers our own
questions takes less, and what computes gets more, on a machine that is shared twenty times over."""


@dataclass(frozen=True)
class Silence:
    """Seconds since the last sign of any kind, and since the last that proves work."""

    quiet_s: float = 0.0
    unproved_s: float = 0.0

    def after(self, seconds: float, moved: bool, busy: bool, cap_s: float) -> Silence:
        """The silence `seconds` later.

        What `moved` ends it. Being `busy` may be work or an endless loop: without anything that
        moves it is believed for `cap_s`.
        """
        if moved:
            return Silence()
        unproved = self.unproved_s + seconds
        if busy and unproved <= cap_s:
            return Silence(0.0, unproved)
        return Silence(self.quiet_s + seconds, unproved)
