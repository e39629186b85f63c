"""How many requests the process has file descriptors for. Pure.

A request needs one descriptor for its client, which it has, and one for its engine. Some are kept
back for health probes, the control channel and the log: a gateway without a descriptor to spare
must still be able to say so.
"""

from __future__ import annotations

import math
from enum import Enum

_KEPT = 16


class Room(Enum):
    """What may still be done."""

    PLENTY = "plenty"
    NONE_TO_SPARE = "none to spare"


def room(used: int, most: float) -> Room:
    """Whether another connection to an engine may be opened; `most` is `bound` of the limit."""
    return Room.PLENTY if used < most else Room.NONE_TO_SPARE


def bound(limit: int) -> float:
    """How many descriptors are in use when there is none to spare of `limit`; below 0: no limit."""
    return math.inf if limit < 0 else limit - min(_KEPT, limit // 4)
