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
    """Seconds that a process's threads ran, and that they waited for a processor, all together.

    The kernel counts a wait when it is over; `waits`: one is going on.
    """

    ran_s: float
    waited_s: float
    waits: bool


def turns(pid: int | None) -> Turns | None:
    """Those of a process since it began; None where that cannot be seen."""
    ran, waited, waits = 0, 0, False
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            times = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(times[0]), waited + int(times[1])
            _, _, rest = (thread / "stat").read_text().rpartition(")")
            waits = waits or rest.split()[0] == "R"
    except (OSError, ValueError, IndexError):  # another system, or it has ended
        return None
    return Turns(ran / 1e9, waited / 1e9, waits)


def starved(before: Turns | None, after: Turns | None, seconds: float) -> bool:
    """Whether it got next to nothing in the `seconds` between."""
    if before is None or after is None:
        return False
    waited = after.waited_s - before.waited_s >= _WAITED * seconds
    return (waited or after.waits) and after.ran_s - before.ran_s <= _RAN * seconds
