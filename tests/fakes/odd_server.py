"""A small HTTP server for tests of clients: an answer that nobody else would give."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

Answer = Callable[["Asked"], Awaitable[None]]


class Asked:
    """One request, and the means to answer it."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes, number: int) -> None:
        self.path, self.headers, self.body, self.number = path, headers, body, number
        self.writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self.writer.write(data)

    def reply(self, status: int, value: object, kind: str = "application/json") -> None:
        """A plain answer."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
        self.send(head.encode() + data)

    def begin(self) -> None:
        """The head of a stream whose body ends with its connection."""
        self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")

    def token(self, finish: str | None = None) -> None:
        """One event with text, or the last one."""
        choice = {"index": 0, "text": "" if finish else " w", "finish_reason": finish}
        self.send(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")


@contextlib.asynccontextmanager
async def odd_server(answer: Answer) -> AsyncIterator[str]:
    """Its address. `/v1/models` is answered with one model, `odd`; the rest is the test's."""
    count = 0

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                pairs = (line.partition(":") for line in head[1:] if line)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(head[0].split()[1], headers, body, count)
                asked.writer = writer
                if asked.path == "/v1/models" and "authorization" not in headers:
                    asked.reply(200, {"data": [{"id": "odd"}]})
                    continue
                count += 1
                await answer(asked)
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
