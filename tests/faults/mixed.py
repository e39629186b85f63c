"""A gateway in ordinary use for a long time: what it takes must not grow.

Sixteen clients send all kinds of requests, good and bad, and one in ten leaves before its end.
Every answer is held against what it must be, then memory, descriptors and tasks of the gateway and
the supervisor against growth, from the first quarter on: until then caches fill.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import psutil

from tests.faults.crowds import Sampler, leave, room_of
from tests.harness import Room, eventually, sample
from tests.streams import ask, check_stream, post_bytes, request_bytes

CLIENTS = 16
WARM = 0.25
"""The share of the time that is not held against growth."""
_TOKENS = (5, 40)
_HOUR = 3600.0
_KINDS = {
    "stream": 6, "plain": 4, "chat": 6, "ollama": 3, "leaves": 1, "leaves_early": 1,
    "not_json": 1, "unknown": 1, "pages": 2,
}  # fmt: skip


class Client:
    """One of the sixteen: what it asks is drawn from its own seed."""

    def __init__(self, room: Room, seed: int) -> None:
        self._room, self._draw = room, random.Random(seed)
        self.done: Counter[str] = Counter()

    async def run(self, ends: float) -> None:
        """One request after another until then; the first wrong answer raises."""
        names, weights = tuple(_KINDS), tuple(_KINDS.values())
        while time.monotonic() < ends:
            kind = self._draw.choices(names, weights)[0]
            await getattr(self, f"_{kind}")(self._draw.randint(*_TOKENS))
            self.done[kind] += 1

    async def _stream(self, tokens: int) -> None:
        data = request_bytes("Hi", "/generate_stream", max_new_tokens=tokens)
        check_stream(_events(await self._answer(data)), tokens)

    async def _plain(self, tokens: int) -> None:
        told = json.loads(await self._answer(request_bytes("Hi", max_new_tokens=tokens)))
        assert told["token_count"] == tokens

    async def _chat(self, tokens: int) -> None:
        said = [{"role": "user", "content": f"number {self._draw.random()}"}]
        asked = {"model": "demo", "messages": said, "stream": True, "max_tokens": tokens}
        data = post_bytes("/v1/chat/completions", asked)
        check_stream(_events(await self._answer(data)), tokens)

    async def _ollama(self, tokens: int) -> None:
        asked = {"model": "demo", "prompt": "Hi", "options": {"num_predict": tokens}}
        raw = (await self._answer(post_bytes("/api/generate", asked))).splitlines()
        lines = [line for line in raw if line.startswith(b"{")]  # sizes of chunks stand between
        assert len(lines) > tokens
        assert json.loads(lines[-1])["done"]

    async def _leaves(self, tokens: int) -> None:
        data = request_bytes("Hi", "/generate_stream", max_new_tokens=1000)
        await leave(self._room.port, data, 20 * tokens)

    async def _leaves_early(self, tokens: int) -> None:
        await leave(self._room.port, request_bytes("Hi", max_new_tokens=1000 + tokens), 0)

    async def _not_json(self, tokens: int) -> None:
        data = request_bytes("Hi", max_new_tokens=tokens)
        await self._answer(data.replace(b'{"', b"{!"), 400)

    async def _unknown(self, tokens: int) -> None:
        asked = {"model": f"none-{self._draw.random()}", "prompt": "Hi", "max_tokens": tokens}
        await self._answer(post_bytes("/v1/completions", asked), 404)

    async def _pages(self, tokens: int) -> None:
        path = ("/metrics", "/models", "/health", "/v1/models")[tokens % 4]
        await self._answer(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())

    async def _answer(self, data: bytes, status: int = 200) -> bytes:
        answer = await ask(self._room.port, data)
        assert answer.status == status, answer
        return answer.body


def _events(body: bytes) -> list[str]:
    return [x.partition("data: ")[2] for x in body.decode().splitlines() if "data: " in x]


async def mixed(minutes: float, seed: int = 1) -> dict[str, Any]:
    """So long; what was asked, and what the processes took. AssertionError: a wrong answer."""
    knobs = ("--tps", "50", "--slots", str(2 * CLIENTS))
    with room_of(*knobs, max_queue=CLIENTS) as room:
        assert room.process is not None
        watched = {
            "gateway": Sampler(psutil.Process(room.engine("gateway-0")["pid"])),
            "supervisor": Sampler(psutil.Process(room.process.pid)),
        }
        tasks: list[float] = []
        clients = [Client(room, seed * CLIENTS + number) for number in range(CLIENTS)]
        sampling = [asyncio.create_task(each.run()) for each in watched.values()]
        sampling.append(asyncio.create_task(_count_tasks(room, tasks)))
        ends = time.monotonic() + 60 * minutes
        await asyncio.gather(*(each.run(ends) for each in clients))
        for each in sampling:
            assert not each.done(), f"it did not look to the end: {each.exception()}"
            each.cancel()
        await eventually(lambda: _all_left(room), 10, "nothing is left of any request")
    done = sum((each.done for each in clients), Counter[str]())
    told = {"minutes": minutes, "requests": done.total(), **done, "tasks": _ends(tasks)}
    return told | {name: _told(each) for name, each in watched.items()}


def _told(sampler: Sampler) -> dict[str, Any]:
    return {
        "rss_mb": [round(x / 1e6, 2) for x in _ends([size for _, size in sampler.rss])],
        "rss_slope_mb_per_h": round(sampler.slope(1 - WARM) * _HOUR / 1e6, 2),
        "fds": _ends(sampler.fds),
    }


def _ends(values: Sequence[float]) -> list[float]:
    """After the warm-up, at the end, and the most between them."""
    late = values[int(len(values) * WARM) :]
    return [late[0], late[-1], max(late)]


async def _count_tasks(room: Room, into: list[float]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        while True:
            text = (await http.get(f"{room.url}/metrics")).text
            into.append(sample(text, "engineroom_gateway_tasks", {}))
            await asyncio.sleep(2)


def _all_left(room: Room) -> bool:
    told = httpx.get(f"{room.engine()['url']}/stats", trust_env=False).json()
    text = room.http.get(f"{room.url}/metrics").text
    return not told["running"] and not sample(text, "engineroom_in_flight", {"model": "demo"})


def grew(told: dict[str, Any]) -> bool:
    """Whether what `mixed` measured is more than an hour's megabyte, or a leak of handles.

    A run of minutes cannot tell a megabyte an hour: it may grow by half of one.
    """
    most = max(1.0, 0.5 * 60 / told["minutes"])
    slopes = [told[each]["rss_slope_mb_per_h"] for each in ("gateway", "supervisor")]
    first, last, _ = told["tasks"]
    handles = [told[each]["fds"] for each in ("gateway", "supervisor")]
    return (
        max(slopes) > most or last > first + CLIENTS or any(b > a + CLIENTS for a, b, _ in handles)
    )
