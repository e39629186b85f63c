"""Free places go to those whose turn it is, in this worker's queue or in another's.

The books are held while a place is chosen and counted, so that two workers never give the same one
away, and nobody comes to wait unseen while a place gets free.
"""

from __future__ import annotations

from orchestrator.gateway.fairness import Entry
from orchestrator.gateway.places import Line, Waiter


def serve(line: Line, now: float) -> None:
    """Give free places away; who avoids a place is passed over. Another's turn is told to it."""
    queue = line.queue
    for entry in queue.first():
        if not _let_in(line, entry, now) and entry.item.avoid is None:
            _wait(line)
            return
    queue.show()
    while (queue.crowd.alone or line.roomy) and queue.crowd.turn():
        turn = queue.next()
        if turn is not None and _let_in(line, turn, now):
            queue.show()
        elif _wait(line):
            return


def _wait(line: Line) -> bool:
    """Nothing for this worker now: whether nothing for the others either."""
    queue = line.queue
    full = queue.crowd.alone or not line.roomy
    queue.show(blocked=not full)
    return full


def _let_in(line: Line, entry: Entry[Waiter], now: float) -> bool:
    """Whether the request got a place, or has given up and is about to leave by itself."""
    waiter = entry.item
    if waiter.place.done():
        line.queue.remove(entry)
        return True
    slot = line.choose(waiter.ask, waiter.avoid, now)
    if slot is None:
        return False
    line.queue.serve(entry)
    waiter.place.set_result(slot)
    return True
