"""One request of a client and its answer, below any framework: bounded reading, one way to answer,
one way to fail.

It stands where uvicorn's protocol keeps its own request cycle, and has what that looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import BodyTooLarge, EngineRoomError, RequestTimeout, WrongContentType
from orchestrator.gateway.manners import Manners, manners_of

if TYPE_CHECKING:
    import asyncio

_UTF8 = (b"", b"charset=utf-8", b'charset="utf-8"')
_PHRASES = {each.value: each.phrase.encode() for each in HTTPStatus}


class Worker(Protocol):
    """Who makes the answer."""

    def run(self, data: bytes) -> None: ...
    def fail(self, error: EngineRoomError) -> None: ...
    def gone(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def check(self, now: float) -> None: ...


class Door(Protocol):
    """The connection that it came over."""

    transport: asyncio.Transport
    clock: Callable[[], float]

    def common_headers(self) -> bytes:
        """The header lines of every answer."""

    def finished(self, exchange: Exchange) -> None:
        """The answer is written."""


class Exchange:
    """See the module. `status` is None until an answer has begun."""

    __slots__ = (
        "_body_s", "_door", "_limit", "_parts", "_sent", "_since", "_size", "_started", "chunked",
        "clock", "disconnected", "headers", "id", "keep_alive", "more", "more_body", "path",
        "response_complete", "status", "streaming", "worker", "written",
    )  # fmt: skip

    def __init__(
        self,
        door: Door,
        path: str,
        headers: dict[bytes, bytes],
        keep_alive: bool,
        chunked: bool,
        limit: int,
        body_s: float,
        id: bytes,
    ) -> None:
        self._door, self.path, self.headers, self._limit = door, path, headers, limit
        self.id, self.more = id, b""
        self._body_s, self.clock = body_s, door.clock
        self.keep_alive, self.chunked = keep_alive, chunked
        self._parts: list[bytes] = []
        self._size = 0
        self._since = self.written = 0.0
        self._started = self._sent = False
        self.more_body = True
        self.response_complete = self.disconnected = self.streaming = False
        self.status: int | None = None
        self.worker: Worker | None = None

    @property
    def _manners(self) -> Manners:
        return manners_of(self.path)

    @property
    def message_event(self) -> Exchange:
        """uvicorn sets it when the connection is lost; `ClientProtocol` tells us itself."""
        return self

    def set(self) -> None:
        """See `message_event`."""

    # --- reading --------------------------------------------------------------------------------

    def begin(self, worker: Worker, now: float) -> None:
        """It is this one's turn: look at the head, then wait for the body."""
        self.worker = worker
        self._since = self.written = now
        self._started = True
        headers = self.headers
        kind = headers.get(b"content-type", b"")
        if kind != b"application/json":
            kind, _, more = kind.lower().partition(b";")
            if kind.strip() != b"application/json" or more.strip() not in _UTF8:
                raise WrongContentType("send the body as content-type: application/json, in UTF-8")
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise WrongContentType("send the body without content-encoding")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            told = f"the body has {int(declared)} bytes, {self._limit} are allowed"
            raise BodyTooLarge(told)
        if self._size > self._limit:
            raise self._too_large()
        if not self.more_body:
            self._run()
        elif headers.get(b"expect", b"").lower() == b"100-continue":
            self._door.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.response_complete:
            return
        self._size += len(data)
        if self._size <= self._limit:
            self._parts.append(data)
        elif self.worker is not None:
            self.worker.fail(self._too_large())

    def on_message_complete(self) -> None:
        """That was all of the body."""
        if not self.more_body:
            return
        self.more_body = False
        if self._started and not self.response_complete:
            self._run()

    def check(self, now: float) -> None:
        """Look whether the body, or what follows it, takes too long."""
        if self.worker is None:
            return
        if not self.more_body:
            if self._sent:
                self._sent, self.written = False, now
            self.worker.check(now)
        elif now - self._since >= self._body_s:
            told = f"the body did not arrive within {self._body_s:g} s"
            self.worker.fail(RequestTimeout(told))

    def gone(self) -> None:
        """The client has left."""
        self.disconnected = True
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.gone()

    def _run(self) -> None:
        parts, self._parts = self._parts, []
        if self.worker is not None:
            self.worker.run(parts[0] if len(parts) == 1 else b"".join(parts))

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body has more than the allowed {self._limit} bytes")

    # --- answering ------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes, more: bytes = b"") -> None:
        """Answer with a whole body of JSON; `more` are header lines."""
        self.status = status
        door = self._door
        door.transport.write(
            b"HTTP/1.1 %d %b\r\n%bx-request-id: %b\r\n%b"
            b"content-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b"
            % (
                status, _PHRASES.get(status, b""), door.common_headers(), self.id, self.more,
                len(body), more, b"" if self.keep_alive else b"connection: close\r\n", body,
            )
        )  # fmt: skip
        self._done()

    def send(self, data: bytes) -> None:
        """Send a piece of an event stream; the first one commits the 200."""
        self._sent = True
        if self.status is None:
            self._write(self._head() + self._chunk(data))
        elif self.chunked:
            self._door.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._write(data)

    def pass_on(self, chunk: bytes) -> None:
        """The same for what is a whole chunk of HTTP already."""
        if self.chunked and self.status is not None:
            self._sent = True
            self._door.transport.write(chunk)
        else:
            self.send(chunk[chunk.index(b"\n") + 1 : -2])

    def remark(self) -> None:
        """Send a comment, so that nobody on the way takes the stream for dead."""
        if remark := self._manners.remark:
            self.send(remark)

    def finish(self, last: bytes) -> None:
        """End an event stream with its terminal."""
        end = b"0\r\n\r\n" if self.chunked else b""
        if self.status is None:
            self._write(self._head() + self._chunk(last) + end)
        else:
            self._write(self._chunk(last) + end)
        self._done()

    def fail(self, error: EngineRoomError) -> None:
        """Tell the client: a status and an error object, or the one error event of a stream."""
        if self.streaming:
            self.finish(self._manners.broken(error))
            return
        more = b"".join(b"%b: %b\r\n" % (k.encode(), v.encode()) for k, v in _headers_of(error))
        if must_close(error) or self.more_body:
            self.keep_alive = False
        self.answer(error.http_status, self._manners.error(error), more)

    def _head(self) -> bytes:
        """The head of an event stream."""
        self.status = 200
        self.streaming = True
        head = self._manners.head
        framing = b"transfer-encoding: chunked\r\n" if self.chunked else b""
        close = b"" if self.keep_alive else b"connection: close\r\n"
        return b"HTTP/1.1 200 OK\r\n%bx-request-id: %b\r\n%b%b%b%b\r\n" % (
            self._door.common_headers(), self.id, self.more, head, framing, close,
        )  # fmt: skip

    def _chunk(self, data: bytes) -> bytes:
        if not data or not self.chunked:  # an empty chunk would end the answer
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    def _write(self, data: bytes) -> None:
        self._door.transport.write(data)

    def _done(self) -> None:
        self.response_complete = True
        self.worker = None
        self._door.finished(self)


def must_close(error: EngineRoomError) -> bool:
    """Whether the connection ends with such an answer."""
    return error.code in {"draining", "body_too_large", "request_timeout", "gateway_busy"}


def _headers_of(error: EngineRoomError) -> list[tuple[str, str]]:
    """The headers that go with an error's body."""
    headers: list[tuple[str, str]] = []
    if error.retry_after is not None:
        headers.append(("retry-after", str(math.ceil(error.retry_after))))
    if error.http_status == 401:
        headers.append(("www-authenticate", "Bearer"))
    return headers


def error_headers(error: EngineRoomError) -> dict[str, str]:
    """The same for an answer by ASGI."""
    close = {"connection": "close"} if must_close(error) else {}
    return {**dict(_headers_of(error)), **close}
