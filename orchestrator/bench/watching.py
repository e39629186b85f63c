"""Asks for a few answers and notes when their events arrive, for `streaming` to judge."""

from __future__ import annotations

import time

from orchestrator.bench.client import Client, Exchange
from orchestrator.bench.driver import bytes_of
from orchestrator.bench.lengths import Length
from orchestrator.bench.orders import Asking
from orchestrator.bench.streaming import Watched
from orchestrator.bench.workload import Workload
from orchestrator.errors import TargetUnreachable

_WORDS = 20.0


async def watch(asking: Asking, tokens: int, answers: int) -> tuple[list[Watched], list[float]]:
    """(so many answers, the times of as many one-token answers), one after another.

    Raises TargetUnreachable where one fails.
    """
    client = Client(asking.target, asking.timeout)
    seed = time.time_ns()  # prompts that no cache has seen
    watched, single = [], []
    try:
        for number in range(answers):
            single.append((await _one(client, asking, seed, 2 * number, 1)).ended)
            watched.append(await _one(client, asking, seed, 2 * number + 1, tokens))
    finally:
        client.close()
    return watched, single


async def _one(client: Client, asking: Asking, seed: int, number: int, tokens: int) -> Watched:
    workload = Workload(seed, Length("fixed", _WORDS), Length("fixed", float(tokens)))
    exchange = Exchange(asking.target.dialect, stream=True)
    data = bytes_of(asking, workload, number)
    record = await client.request(data, exchange, time.perf_counter())
    if not record.ok:
        told = f": {exchange.error}" if exchange.error else ""
        raise TargetUnreachable(f"{asking.target.url}: an answer failed ({record.problem}){told}")
    return Watched(record.events, record.ended)
