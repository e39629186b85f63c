"""How many requests the process has file descriptors for. Pure.

A request needs one descriptor for its client, which it has, and one for its engine. Some are kept
back for health probes, the control channel and the log: a gateway without a descriptor to spare
must still be able to say so.
"""

from __future__ import annotations

from enum import Enum

_KEPT = 16


class Room(Enum):
    """What may still be done."""

    PLENTY = "plenty"
    NONE_TO_SPARE = "none to spare"


def room(used: int, limit: int) -> Room:
    """Whether another connection to an engine may be opened; `used` and `limit` in descriptors."""
    kept = min(_KEPT, limit // 4)
    return Room.PLENTY if limit < 0 or used + kept < limit else Room.NONE_TO_SPARE
