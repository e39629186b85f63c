"""One request and its answer over ASGI: bounded reading, one way to answer, one way to fail."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from orchestrator.errors import BodyTooLarge, EngineRoomError, RequestTimeout, WrongContentType
from orchestrator.gateway.sse import DONE, event

_BODY_S = 30.0
_SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def error_headers(error: EngineRoomError) -> dict[str, str]:
    """The headers that go with an error's body."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.code in {"draining", "body_too_large", "request_timeout", "gateway_busy"}:
        headers["connection"] = "close"
    return headers


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


class Exchange:
    """Reads one request and sends one answer. `status` is None until an answer has begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self.status: int | None = None
        self.streaming = False
        self.headers: dict[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }

    async def read(self, limit: int) -> bytes:
        """The whole JSON body. Raises WrongContentType, BodyTooLarge or RequestTimeout."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise WrongContentType("send the body as content-type: application/json")
        if self.headers.get("content-encoding", "identity") != "identity":
            raise WrongContentType("send the body without content-encoding")
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(f"the body has {declared} bytes, {limit} are allowed")
        try:
            async with asyncio.timeout(_BODY_S):
                return await self._read(limit)
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {_BODY_S:g} s") from None

    async def _read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            size += len(message.get("body", b""))
            if size > limit:
                raise BodyTooLarge(f"the body has more than the allowed {limit} bytes")
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    async def unless_gone(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, and cancel it as soon as the client has left (raises ClientGone)."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            task.result()
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, value: object, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        """Answer with JSON."""
        body = json.dumps(value, ensure_ascii=False).encode()
        await self.answer(status, b"application/json", body, *headers)

    async def answer(
        self, status: int, kind: bytes, body: bytes, *headers: tuple[bytes, bytes]
    ) -> None:
        """Answer with a whole body."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, ((b"content-type", kind), length, *headers))
        await self._send({"type": "http.response.body", "body": body})

    async def send_event(self, data: bytes) -> None:
        """Send a piece of an event stream; the first one commits the 200."""
        if self.status is None:
            self.streaming = True
            await self._start(200, _SSE_HEADERS)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, last: bytes = DONE) -> None:
        """End an event stream with its terminal."""
        await self._send({"type": "http.response.body", "body": last})

    async def fail(self, error: EngineRoomError) -> None:
        """Tell the client: a status and an error object, or the one error event of a stream."""
        if self.streaming:
            await self.finish(event(error.envelope()))
            return
        headers = [(k.encode(), v.encode()) for k, v in error_headers(error).items()]
        await self.json(error.envelope(), error.http_status, *headers)

    async def _start(self, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.status = status
        start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": list(headers),
        }
        await self._send(start)
