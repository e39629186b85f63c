"""What one of several workers is given when it is started, beside the gateway's config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Seat(BaseModel):
    """Its number, how many there are, and descriptors of what they share.

    `memory` is the file of the books, `listeners` the public sockets, one for each, `ends` the
    writing ends of all mailboxes, `boxes` the reading ends, of which it reads its own. `line` is a
    stream to the first worker, which has none itself: it looks after the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker: int
    workers: int
    memory: int
    listeners: tuple[int, ...]
    ends: tuple[int, ...]
    boxes: tuple[int, ...]
    line: int | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that has to be handed on."""
        line = () if self.line is None else (self.line,)
        return (self.memory, *self.listeners, *self.ends, *self.boxes, *line)
