"""Whether a process that did not answer was kept from it: it wanted a processor and got none.

One that hangs waits for something else, or computes; one that starves stands in the queue of a
processor, which the kernel counts. Ending it would not give it one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_WAITED = 0.5  # of the time, at least
_RAN = 0.2  # of the time, at most: a loop that never ends gets more


@dataclass(frozen=True)
class Turns:
    """Seconds that a process ran, and that it waited for a processor, since it began.

    The kernel counts a wait when it is over; `waits`: one is going on.
    """

    ran_s: float
    waited_s: float
    waits: bool


def turns(pid: int | None) -> Turns | None:
    """Those of a process's first thread; None where that cannot be seen."""
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        return Turns(int(ran) / 1e9, int(waited) / 1e9, rest.split()[0] == "R")
    except (OSError, ValueError, IndexError):  # another system, or it has ended
        return None


def starved(before: Turns | None, after: Turns | None, seconds: float) -> bool:
    """Whether it got next to nothing in the `seconds` between."""
    if before is None or after is None:
        return False
    waited = after.waited_s - before.waited_s >= _WAITED * seconds
    return (waited or after.waits) and after.ran_s - before.ran_s <= _RAN * seconds
