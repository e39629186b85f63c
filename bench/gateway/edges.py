"""At the edges: how soon the engine knows that a client left, and what a slow reader costs.

    python -m bench.gateway.edges --targets ours,nginx

The engine is a bare socket that answers as each measurement needs; each target stands before it as
in `make bench-gateway`. Times are from the client's close to the end that the engine's socket sees;
memory is of the target's whole process tree. One table tells the medians and the most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from bench.gateway.__main__ import running, wait_for
from bench.gateway.targets import Target, targets
from orchestrator.settings import load_settings

SIZE = 50_000_000
_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"mock-model","choices":'
    b'[{"index":0,"delta":{"content":"' + b"x" * 1000 + b'"},"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"mock-model","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PATIENCE_S = 5.0
_WATCH_S = 3.0


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Engine:
    """Takes one request at a time; `says` is what it does with the next."""

    says: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    written: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: health checks, then the request that is measured."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                    continue
                if b"transfer-encoding: chunked" in head.lower():
                    await reader.readuntil(b"0\r\n\r\n")
                else:
                    await reader.readexactly(_length(head))
                self.asked.set()
                work = asyncio.create_task(self._answer(writer))
                with contextlib.suppress(ConnectionError):
                    await reader.read(1)
                self.left.set()
                work.cancel()
                break
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        if self.says is not None:
            with contextlib.suppress(ConnectionError):
                await self.says(writer)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


@contextlib.asynccontextmanager
async def engine_on(port: int) -> AsyncIterator[Engine]:
    """An engine that listens there."""
    made = Engine()
    server = await asyncio.start_server(made.serve, "127.0.0.1", port, limit=1 << 20)
    try:
        yield made
    finally:
        server.close()


def request(stream: bool) -> bytes:
    """A chat as it goes over the wire."""
    said = [{"role": "user", "content": "Hi"}]
    body = json.dumps({"model": "mock-model", "messages": said, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def abort(engine: Engine, port: int, stream: bool, begun: bool) -> float | None:
    """Seconds until the engine's connection ended; None where it had not after five."""

    async def says(writer: asyncio.StreamWriter) -> None:
        if begun:
            writer.write(_HEAD + chunk(_EVENT))
            await writer.drain()

    engine.says, engine.asked, engine.left = says, asyncio.Event(), asyncio.Event()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(stream))
    await engine.asked.wait()
    if begun:
        await asyncio.wait_for(reader.readuntil(b"xxx"), _PATIENCE_S)
    began = time.monotonic()
    writer.close()
    try:
        await asyncio.wait_for(engine.left.wait(), _PATIENCE_S)
    except TimeoutError:
        return None
    return time.monotonic() - began


async def slow_reader(engine: Engine, port: int, pid: int) -> dict[str, Any]:
    """What 50 MB cost whose reader takes next to nothing for three seconds, then all of it."""

    async def says(writer: asyncio.StreamWriter) -> None:
        writer.write(_HEAD)
        while engine.written < SIZE:
            writer.write(chunk(_EVENT * 16))
            await writer.drain()
            engine.written += 16 * len(_EVENT)
        writer.write(chunk(_LAST) + b"0\r\n\r\n")
        await writer.drain()

    engine.says, engine.asked, engine.left = says, asyncio.Event(), asyncio.Event()
    engine.written = 0
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    plain.connect(("127.0.0.1", port))
    plain.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=plain, limit=1 << 14)
    before = most = resident(pid)
    writer.write(request(stream=True))
    await engine.asked.wait()
    came, last = 0, b""
    ends = time.monotonic() + _WATCH_S
    while time.monotonic() < ends:
        came += len(await reader.read(1000))
        most = max(most, resident(pid))
        await asyncio.sleep(0.02)
    held = engine.written
    while part := await reader.read(1 << 16):
        came, last = came + len(part), (last + part)[-20:]
        most = max(most, resident(pid))
        if last.endswith(b"0\r\n\r\n"):
            break
    writer.close()
    return {"grew_mb": (most - before) / 1e6, "ahead_mb": held / 1e6, "whole": came > SIZE}


def resident(pid: int) -> int:
    """Bytes of a process and its children."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(int(each.memory_info().rss) for each in tree)


async def measured(engine: Engine, target: Target, pid: int, times: int) -> list[str]:
    """One row."""
    row = [target.name.ljust(16)]
    for stream, begun in ((True, True), (True, False), (False, False)):
        took = [await abort(engine, target.port, stream, begun) for _ in range(times)]
        came = [1000 * each for each in took if each is not None]
        never = len(took) - len(came)
        told = f"{statistics.median(came):.1f} / {max(came):.1f}" if came else "never"
        row.append((told + (f" ({never} never)" if never and came else "")).rjust(22))
    cost = await slow_reader(engine, target.port, pid)
    row.append(f"{cost['grew_mb']:.1f}".rjust(10) + f"{cost['ahead_mb']:.1f}".rjust(17))
    row.append("  whole" if cost["whole"] else "  cut")
    return row


async def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gateway.edges", description=__doc__)
    parser.add_argument("--targets", default="ours")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--port", type=int, default=19_100)
    given = parser.parse_args()
    peers = load_settings({}, os.environ).data / "bench" / "peers"
    titles = ("abort in a stream, ms", "before its first byte", "no stream")
    head = "target".ljust(16) + "".join(each.rjust(22) for each in titles)
    sys.stdout.write(head + "   grew MB  engine ahead MB\n")
    async with engine_on(given.port) as engine:
        for target in targets(given.port, given.port + 1, peers, set(given.targets.split(","))):
            with running(target.argv, cpu=0) as process:
                await asyncio.to_thread(wait_for, target.port)
                try:
                    row = await measured(engine, target, process.pid, given.times)
                except TimeoutError:
                    row = [target.name.ljust(16), "  it did not pass the engine's first event on"]
            sys.stdout.write("".join(row) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
