"""Whether a request may wait: bounds by count and by prompt tokens, fair where they are reached."""

from __future__ import annotations

from orchestrator.errors import QueueFull
from orchestrator.gateway.fairness import Entry
from orchestrator.gateway.places import Line, Waiter


def make_room(line: Line, entry: Entry[Waiter], most: int, most_tokens: int) -> None:
    """Raise QueueFull, or refuse those that have less of a claim to wait than `entry`.

    `most` requests may wait, with `most_tokens` in their prompts; a single one may be longer. So
    whoever fills the queue is told so, and who asks little is let in all the same.
    """
    queue = line.queue
    while True:
        crowded = len(queue) >= most
        long = len(queue) > 0 and queue.prompt_tokens + entry.prompt > most_tokens
        if not crowded and not long:
            return
        full = QueueFull(
            f"{len(queue)} requests with {queue.prompt_tokens} tokens wait for {line.route.name} "
            "already, which is the limit",
            retry_after=line.retry_after(),
        )
        victim = queue.victim(entry, by_tokens=not crowded)
        if victim is None:
            raise full
        queue.remove(victim)
        if not victim.item.place.done():
            victim.item.place.set_exception(full)
