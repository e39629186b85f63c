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
    blocked = False
    for entry in queue.first():
        if not _let_in(line, entry, now) and entry.item.avoid is None:
            blocked = True
            break
    if blocked and queue.crowd.alone:
        return
    _show(line, blocked)
    while (queue.crowd.alone or line.roomy) and queue.crowd.turn():
        turn = queue.next()
        if turn is None or not _let_in(line, turn, now):
            if queue.crowd.alone:
                return
            blocked = True
        _show(line, blocked)


def _show(line: Line, blocked: bool) -> None:
    """What waits here, so that others know; `blocked`: no free place is for it."""
    urgent = any(entry.item.avoid is None for entry in line.queue.first())
    line.queue.show(blocked=blocked and line.roomy, urgent=urgent)


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
