"""What one of several workers is given when it is started, beside the gateway's config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

OTHER_VERSION = 76
"""Exit code of a worker whose program is another version than the gateway's: it cannot join."""


class Seat(BaseModel):
    """Its number, how many there are, and descriptors.

    `memory` is the file of the books, `listener` its public socket, `ends` the writing ends of all
    mailboxes, `box` the reading end of its own, `line` a stream to the first worker, which looks
    after the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker: int
    workers: int
    memory: int
    listener: int
    ends: tuple[int, ...]
    box: int
    line: int

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that has to be handed on."""
        return (self.memory, self.listener, *self.ends, self.box, self.line)
