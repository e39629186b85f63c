"""Several load processes as one: they start together, their records come back as one list."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.bench.orders import Asking, Effort, Order, order_line
from orchestrator.bench.records import Record, unpack
from orchestrator.bench.workload import Workload
from orchestrator.errors import EngineRoomError

_LINE_LIMIT = 1 << 28
_HEAD_START_S = 0.1


@dataclass(frozen=True)
class Pace:
    """How requests follow each other: a closed loop of users, or an open loop at due moments."""

    users: int = 0
    requests: int | None = None
    duration: float | None = None
    due: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Progress:
    """A phase so far, all workers together."""

    done: int = 0
    sent: int = 0
    failed: int = 0
    tokens: int = 0


class Crew:
    """The processes; `async with Crew(2) as crew`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._workers: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Crew:
        command = (sys.executable, "-m", "orchestrator.bench.worker")
        pipe = asyncio.subprocess.PIPE
        for _ in range(self._size):
            worker = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, limit=_LINE_LIMIT, start_new_session=True
            )
            self._workers.append(worker)
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
        for worker in self._workers:
            await worker.wait()

    async def run(
        self,
        asking: Asking,
        workload: Workload,
        pace: Pace,
        first: int = 0,
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> tuple[list[Record], list[Effort]]:
        """One phase, in the order of the requests' starts. Requests are numbered from `first`."""
        orders = share_out(asking, workload, pace, first, self._size)
        at = time.perf_counter() + _HEAD_START_S
        parts: dict[int, Progress] = {}

        def heard(place: int, said: dict[str, Any]) -> None:
            parts[place] = Progress(**said)
            fields = ("done", "sent", "failed", "tokens")
            tell(Progress(*(sum(getattr(p, f) for p in parts.values()) for f in fields)))

        results = await asyncio.gather(
            *(
                self._phase(worker, replace(order, at=at), place, heard)
                for place, (worker, order) in enumerate(
                    zip(self._workers, orders, strict=False)  # idle ones have nothing to do
                )
            )
        )
        records = [record for some, _ in results for record in some]
        return sorted(records, key=lambda each: each.began), [effort for _, effort in results]

    async def _phase(
        self,
        worker: asyncio.subprocess.Process,
        order: Order,
        place: int,
        heard: Callable[[int, dict[str, Any]], None],
    ) -> tuple[list[Record], Effort]:
        records: list[Record] = []
        given, told = worker.stdin, worker.stdout
        if given is None or told is None:
            raise EngineRoomError("a load process has no pipes")
        with contextlib.suppress(ConnectionError):  # said below, where its output ends
            given.write(order_line(order))
            await given.drain()
        while line := await told.readline():
            said = json.loads(line)
            if "records" in said:
                records += map(unpack, said["records"])
            elif "effort" in said:
                return records, Effort(**said["effort"])
            else:
                heard(place, said)
        raise EngineRoomError("a load process ended before its work was done")


def share_out(
    asking: Asking, workload: Workload, pace: Pace, first: int, size: int
) -> Sequence[Order]:
    """One order for each worker that has work; together they do `pace` once."""
    orders = []
    if pace.due is None:
        size = max(1, min(size, pace.users))  # every number has a user to ask it
    for place in range(size):
        order = Order(asking, workload, 0.0, first=first + place, step=size)
        if pace.due is not None:
            due = list(pace.due[place::size])
            order = replace(order, due=due)
        else:
            users = pace.users // size + (place < pace.users % size)
            end = None if pace.requests is None else first + pace.requests
            order = replace(order, users=users, end=end, duration=pace.duration)
        if order.users or order.due:
            orders.append(order)
    return orders
