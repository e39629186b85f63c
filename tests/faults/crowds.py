"""Crowds before the gateway: many streams of which some leave, and connections that say nothing.

    python -m tests.faults.crowds streams --streams 1000 --seconds 120
    python -m tests.faults.crowds half-open --connections 2000

`streams` holds every stream that stays against the numbers of its tokens, then the engine against
idleness, and the gateway's memory and descriptors against growth. `half-open` measures a healthy
client beside connections that begin a request and never end it. One line of JSON tells the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.faults.lab import percentile
from tests.harness import Room, eventually, fake_room, sample
from tests.streams import ask, check_stream, request_bytes

LEAVE = 0.05  # the share of streams whose client leaves in the middle
_TOKENS = (5, 60)


@contextmanager
def room_of(*knobs: str, **settings: Any) -> Iterator[Room]:
    """A server over the fake engine, which leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="crowd") as folder:
        room = fake_room(Path(folder) / "data", *knobs, serial=False, **settings).start()
        try:
            yield room
        finally:
            room.close()
        assert room.processes() == []


class Sampler:
    """A process's memory and descriptors, once a second from its start on."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.rss: list[tuple[float, float]] = []
        self.fds: list[int] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self.rss.append((time.monotonic(), float(self._process.memory_info().rss)))
            self.fds.append(self._process.num_fds())
            await asyncio.sleep(1)

    def slope(self, share: float = 0.5) -> float:
        """Bytes a second over the last `share` of the samples, by least squares."""
        points = self.rss[int(len(self.rss) * (1 - share)) :]
        mean_t = sum(t for t, _ in points) / len(points)
        mean_b = sum(b for _, b in points) / len(points)
        over = sum((t - mean_t) * (b - mean_b) for t, b in points)
        under = sum((t - mean_t) ** 2 for t, _ in points)
        return over / under if under else 0.0


async def streams(count: int, seconds: float, seed: int) -> dict[str, Any]:
    """`count` streams at any time, for so long."""
    draw = random.Random(seed)
    whole = left = 0
    with room_of("--tps", "4", "--slots", str(2 * count), max_queue=count) as room:
        sampler = Sampler(psutil.Process(room.engine("gateway-0")["pid"]))
        ends = time.monotonic() + seconds

        async def client() -> None:
            nonlocal whole, left
            while time.monotonic() < ends:
                leaves = draw.random() < LEAVE
                tokens = 1000 if leaves else draw.randint(*_TOKENS)
                data = request_bytes("Hi", "/generate_stream", max_new_tokens=tokens)
                if leaves:
                    await leave(room.port, data, draw.randint(1, 2000))
                    left += 1
                    continue
                answer = await ask(room.port, data)
                assert answer.status == 200, answer
                lines = answer.body.decode().splitlines()
                check_stream([x.partition("data: ")[2] for x in lines if "data: " in x], tokens)
                whole += 1

        sampling = asyncio.create_task(sampler.run())
        await asyncio.gather(*(client() for _ in range(count)))
        began = time.monotonic()
        url = room.engine()["url"]
        await eventually(lambda: _idle(url), 10, "the engine is idle")
        idle = time.monotonic() - began
        assert not sampling.done(), f"it did not look to the end: {sampling.exception()}"
        sampling.cancel()
        text = room.http.get(f"{room.url}/metrics").text
        assert sample(text, "engineroom_client_disconnects_total", {"model": "demo"}) == left
    return {
        "what": "streams",
        "streams": count,
        "seconds": seconds,
        "whole": whole,
        "left": left,
        "lost": 0,
        "idle_after_s": round(idle, 3),
        "rss_mb": [round(sampler.rss[n][1] / 1e6, 1) for n in (0, len(sampler.rss) // 2, -1)],
        "rss_slope_kb_per_s": round(sampler.slope() / 1e3, 2),
        "fds": [sampler.fds[0], max(sampler.fds), sampler.fds[-1]],
    }


async def leave(port: int, data: bytes, size: int) -> None:
    """Read so many bytes of an answer and go."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    came = 0
    while came < size and (part := await reader.read(size - came)):
        came += len(part)
    writer.transport.abort()


def _idle(url: str) -> bool:
    told = httpx.get(f"{url}/stats", trust_env=False).json()
    return int(told["running"]) == 0


async def half_open(connections: int, seconds: float) -> dict[str, Any]:
    """A healthy client's latency without and with them, and when the last of them was closed."""
    with room_of() as room:
        alone = await _latencies(room.port, seconds)
        began = time.monotonic()
        held = await asyncio.gather(*(_half(room.port) for _ in range(connections)))
        opened = time.monotonic() - began
        closing = asyncio.gather(*(reader.read() for reader, _ in held))
        beside = await _latencies(room.port, seconds)
        async with asyncio.timeout(60):
            await closing
        closed = time.monotonic() - began - opened
        for _, writer in held:
            writer.close()
    return {
        "what": "half-open",
        "connections": connections,
        "alone_p99_ms": round(percentile(alone, 0.99) * 1e3, 2),
        "beside_p99_ms": round(percentile(beside, 0.99) * 1e3, 2),
        "alone_p50_ms": round(percentile(alone, 0.5) * 1e3, 2),
        "beside_p50_ms": round(percentile(beside, 0.5) * 1e3, 2),
        "closed_after_s": round(closed, 2),
    }


async def _half(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /generate HTTP/1.1\r\nhost: x\r\n")
    return reader, writer


async def _latencies(port: int, seconds: float) -> list[float]:
    ends, took = time.monotonic() + seconds, list[float]()
    data = request_bytes("Hi", max_new_tokens=1)
    while time.monotonic() < ends:
        answer = await ask(port, data)
        assert answer.status == 200, answer
        took.append(answer.seconds)
    return took


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("streams", "half-open"))
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.what == "streams":
        told = asyncio.run(streams(given.streams, given.seconds or 120, given.seed))
    else:
        told = asyncio.run(half_open(given.connections, given.seconds or 5))
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
