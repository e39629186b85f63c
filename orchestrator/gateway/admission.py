"""Whether a request may wait: bounds by count and by prompt tokens, fair where they are reached."""

from __future__ import annotations

from orchestrator.errors import QueueFull
from orchestrator.gateway.fairness import Entry
from orchestrator.gateway.places import Line, Waiter


def make_room(line: Line, entry: Entry[Waiter], most: int, most_tokens: int) -> None:
    """Raise QueueFull, or refuse those that have less of a claim to wait than `entry`.

    `most` requests may wait, with `most_tokens` in their prompts; a single one may be longer. So
    whoever fills the queue is told so, and who asks little is let in all the same. Those with less
    of a claim may wait in another worker, which then sends one away by `trim`.
    """
    queue = line.queue
    while (by_tokens := _beyond(line, most, most_tokens, 1, entry.prompt)) is not None:
        victim = queue.victim(entry, by_tokens)
        if victim is not None:
            _send_away(line, victim)
        elif queue.overfull(entry, by_tokens):
            queue.crowd.tell_fullest(by_tokens)
            return
        else:
            raise _full(line)


def trim(line: Line, most: int, most_tokens: int) -> None:
    """Send the latest of the fullest key away while too many wait, where that key waits here."""
    while (by_tokens := _beyond(line, most, most_tokens)) is not None:
        victim = line.queue.fullest(by_tokens)
        if victim is None:
            return
        _send_away(line, victim)


def _beyond(line: Line, most: int, most_tokens: int, more: int = 0, prompt: int = 0) -> bool | None:
    """Which bound so many more would pass: False that of requests, True that of tokens, or None."""
    queue, others = line.queue, line.queue.crowd.others
    requests = len(queue) + others.requests
    if requests + more > most:
        return False
    long = queue.prompt_tokens + others.tokens + prompt > most_tokens
    return True if long and requests + more > 1 else None


def _full(line: Line) -> QueueFull:
    queue, others = line.queue, line.queue.crowd.others
    requests, tokens = len(queue) + others.requests, queue.prompt_tokens + others.tokens
    return QueueFull(
        f"{requests} requests with {tokens} tokens wait for {line.route.name} already, "
        "which is the limit",
        retry_after=line.retry_after(),
    )


def _send_away(line: Line, victim: Entry[Waiter]) -> None:
    full = _full(line)
    line.queue.remove(victim)
    if not victim.item.place.done():
        victim.item.place.set_exception(full)
