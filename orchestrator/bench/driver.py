"""One phase of load in one event loop: closed (users) or open (moments)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.bench.client import Client, Exchange
from orchestrator.bench.histogram import percentile
from orchestrator.bench.orders import Asking, Effort, Order
from orchestrator.bench.records import Record
from orchestrator.bench.targets import body, request_bytes
from orchestrator.bench.workload import Workload

_LAG_STEP_S = 0.02
_TELL_S = 0.2
_PAUSE_S = 0.01


@dataclass
class Tally:
    """What a phase has done so far."""

    records: list[Record] = field(default_factory=list)
    sent: int = 0
    failed: int = 0
    tokens: int = 0  # of ended requests
    running: set[Exchange] = field(default_factory=set)

    @property
    def tokens_so_far(self) -> int:
        """With those of the answers that still come."""
        return self.tokens + sum(len(each.times) for each in self.running)


def bytes_of(asking: Asking, workload: Workload, number: int) -> bytes:
    """The bytes of request `number`."""
    prompt, tokens = workload.request(number)
    made = body(asking.target, asking.model, prompt, tokens, asking.stream, asking.more)
    path = asking.target.path(asking.stream)
    return request_bytes(asking.target, "POST", path, asking.key, made)


class Driver:
    """Runs orders; keeps each target's connections from one phase to the next."""

    def __init__(self, tell: Callable[[Tally], None]) -> None:
        """`tell` hears of progress, some times a second."""
        self._tell = tell
        self._clients: dict[str, Client] = {}

    async def run(self, order: Order) -> tuple[list[Record], Effort]:
        """Do one phase: its records, and what measuring cost."""
        client = self._client(order.asking)
        connects = client.connects
        tally, lags = Tally(), [0.0]
        await asyncio.sleep(max(0.0, order.at - time.perf_counter()))
        wall, cpu = time.perf_counter(), time.process_time()
        watch = [asyncio.create_task(_lateness(lags)), asyncio.create_task(self._report(tally))]
        try:
            if order.due is None:
                await self._closed(order, client, tally, wall)
            else:
                await self._open(order, client, tally, wall)
        finally:
            for task in watch:
                task.cancel()
            await asyncio.gather(*watch, return_exceptions=True)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        lags.sort()
        effort = Effort(
            cpu, wall, percentile(lags, 0.5), percentile(lags, 0.99), lags[-1],
            client.connects - connects,
        )  # fmt: skip
        return tally.records, effort

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()

    def _client(self, asking: Asking) -> Client:
        if asking.target.url not in self._clients:
            self._clients[asking.target.url] = Client(asking.target, asking.timeout)
        return self._clients[asking.target.url]

    async def _one(
        self, order: Order, client: Client, tally: Tally, number: int, due: float | None = None
    ) -> Record:
        asking = order.asking
        data = bytes_of(asking, order.workload, number)
        if due is not None:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        exchange = Exchange(asking.target.dialect, asking.stream)
        tally.sent += 1
        tally.running.add(exchange)
        record = await client.request(data, exchange, order.at, due)
        tally.running.discard(exchange)
        tally.records.append(record)
        tally.failed += not record.ok
        tally.tokens += record.output_tokens
        return record

    async def _closed(self, order: Order, client: Client, tally: Tally, start: float) -> None:
        next_number = order.first

        async def user() -> None:
            nonlocal next_number
            while order.end is None or next_number < order.end:
                if order.duration is not None and time.perf_counter() - start >= order.duration:
                    return
                number, next_number = next_number, next_number + order.step
                record = await self._one(order, client, tally, number)
                if not record.ok:
                    await asyncio.sleep(_PAUSE_S)  # who refuses at once is not hammered

        async with asyncio.TaskGroup() as group:
            for _ in range(order.users):
                group.create_task(user())

    async def _open(self, order: Order, client: Client, tally: Tally, start: float) -> None:
        async with asyncio.TaskGroup() as group:
            for place, at in enumerate(order.due or ()):
                # Made a moment ahead, so that building a request delays none.
                await asyncio.sleep(max(0.0, start + at - 0.05 - time.perf_counter()))
                number = order.first + place * order.step
                group.create_task(self._one(order, client, tally, number, start + at))

    async def _report(self, tally: Tally) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            self._tell(tally)


async def _lateness(lags: list[float]) -> None:
    """How much later than asked the loop wakes a sleeper: what other work in it costs an event."""
    while True:
        due = time.perf_counter() + _LAG_STEP_S
        await asyncio.sleep(_LAG_STEP_S)
        lags.append(max(0.0, time.perf_counter() - due))
