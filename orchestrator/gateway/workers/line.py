"""The stream between the first worker and another one: each may ask for the other's metrics."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable

_LONGEST = 1 << 26  # bytes of one answer


class Unanswered(Exception):
    """The other end is gone, or too busy."""


class Line:
    """One end. `answer` makes what the other asks for."""

    def __init__(self, sock: socket.socket, answer: Callable[[], Awaitable[str]]) -> None:
        self._sock, self._answer = sock, answer
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()

    async def run(self) -> None:
        """Answer and listen until the other end is gone."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=_LONGEST)
        try:
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    self._take(json.loads(line))
        finally:
            for asked in self._asked.values():
                asked.cancel()
            self._writer.close()
            self._writer = None

    async def ask(self, seconds: float) -> str:
        """What the other end answers. Raises Unanswered."""
        if self._writer is None:
            raise Unanswered
        number = next(self._numbers)
        asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self._send({"ask": number})
        try:
            async with asyncio.timeout(seconds):
                await asyncio.wait([asked])
        except TimeoutError as error:
            raise Unanswered from error
        finally:
            del self._asked[number]
        if asked.cancelled():
            raise Unanswered
        return asked.result()

    def _take(self, message: dict[str, object]) -> None:
        if "ask" in message:
            task = asyncio.create_task(self._reply(message["ask"]))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        asked = self._asked.get(int(str(message["to"])))
        if asked is not None and not asked.done():
            asked.set_result(str(message["text"]))

    async def _reply(self, number: object) -> None:
        self._send({"to": number, "text": await self._answer()})

    def _send(self, message: dict[str, object]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")
