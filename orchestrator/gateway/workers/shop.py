"""All that the first of several workers makes for all of them, and keeps for those to come."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import GatewayBusy
from orchestrator.gateway.workers.memory import make
from orchestrator.gateway.workers.seat import Seat


@dataclass(frozen=True)
class Shop:
    """A listener for each worker, the writing and the reading end of each one's mailbox, and the
    descriptor of the books' memory.

    Listeners stay open here: who connects while a worker is replaced waits for the next one.
    """

    listeners: Sequence[socket.socket]
    ends: Sequence[socket.socket]
    boxes: Sequence[socket.socket]
    memory: int

    @property
    def workers(self) -> int:
        """How many."""
        return len(self.listeners)

    def seat(self, worker: int, line: int) -> Seat:
        """What another worker is given."""
        return Seat(
            worker=worker,
            workers=self.workers,
            memory=self.memory,
            listener=self.listeners[worker].fileno(),
            ends=tuple(each.fileno() for each in self.ends),
            box=self.boxes[worker].fileno(),
            line=line,
        )

    def close(self) -> None:
        """Let nobody connect to the other workers any more."""
        for each in self.listeners[1:]:
            each.close()


def opened(listeners: Sequence[socket.socket]) -> Shop:
    """The shop of as many workers as listeners. Raises GatewayBusy where the system has no room."""
    pairs: list[tuple[socket.socket, socket.socket]] = []
    try:
        pairs += [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in listeners]
        memory = make(len(listeners))
    except OSError as error:
        told = f"{len(listeners)} gateway workers need memory and descriptors: {error}"
        raise GatewayBusy(told) from error
    return Shop(listeners, [each[0] for each in pairs], [each[1] for each in pairs], memory)
