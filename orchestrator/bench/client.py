"""A lean HTTP/1.1 client: asyncio transports, httptools, kept connections, one clock per read.

Every event is stamped with the moment at which its bytes were read, before they are parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

import httptools

from orchestrator.bench.answers import Illegible, Said, read_answer, read_event
from orchestrator.bench.records import Record
from orchestrator.bench.sse import SseReader, TooLong
from orchestrator.bench.targets import Target

_PLAIN_LIMIT = 1 << 26
_ERROR_LIMIT = 1 << 16


class Broken(Exception):
    """The connection failed; `str()` is the class of failure. `unheard`: not one byte came."""

    def __init__(self, problem: str, unheard: bool = False) -> None:
        super().__init__(problem)
        self.unheard = unheard


class Exchange:
    """One request's answer as it comes in."""

    def __init__(self, dialect: str, stream: bool) -> None:
        self.dialect, self.stream = dialect, stream
        self.status = 0
        self.times: list[float] = []  # when events with text were read, perf_counter
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.finished = False
        self.error = ""
        self.illegible = ""
        self.body = bytearray()
        self.is_events = False
        self.ended = 0.0  # when the last byte was read, perf_counter
        self._sse = SseReader()

    def feed(self, now: float, data: bytes) -> None:
        """Bytes of the body, read at `now`."""
        if self.status != 200 or not self.is_events:
            limit = _PLAIN_LIMIT if self.status == 200 else _ERROR_LIMIT
            self.body += data[: max(0, limit - len(self.body))]
            return
        try:
            for payload in self._sse.feed(data):
                self._take(now, read_event(self.dialect, payload))
        except (Illegible, TooLong) as error:
            self.illegible = self.illegible or str(error)

    def _take(self, now: float, said: Said) -> None:
        if said.text:
            self.times.append(now)
        self.finished |= said.finished
        self.error = self.error or said.error
        if said.tokens is not None:
            self.tokens = said.tokens
        if said.prompt_tokens is not None:
            self.prompt_tokens = said.prompt_tokens

    def verdict(self) -> str:
        """The class of failure, once the answer ended; empty for a whole one."""
        if self.status != 200:
            return f"HTTP {self.status}"
        if self.stream and not self.is_events:
            return "not a stream"
        if not self.stream:
            try:
                self._take(0.0, read_answer(self.dialect, bytes(self.body)))
                self.times.clear()  # a plain answer has one moment, its end
            except Illegible as error:
                self.illegible = str(error)
        if self.error:
            return "error inside the answer"
        if self.illegible:
            return f"illegible: {self.illegible}"
        return "" if self.finished else "stream ended early"


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._now = 0.0
        self._heard = False
        self._until_close = True
        self.alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.alive = cast(asyncio.Transport, transport), True
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: bytes, exchange: Exchange) -> None:
        """Send a request and wait for the whole answer. Raises Broken."""
        if self._transport is None or not self.alive:
            raise Broken("connection lost", unheard=True)
        self._exchange, self._heard, self._until_close = exchange, False, True
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            await self._done
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._exchange = self._done = None

    def close(self) -> None:
        """Leave at once."""
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio and httptools call these ---

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        if self._done is None or self._done.done():  # nobody asked
            self.close()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("not HTTP")
            self.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        exchange = self._exchange
        if error is None and exchange is not None and exchange.status and self._until_close:
            self.on_message_complete()  # a body without a length ends with its connection
        self._fail("connection lost" if error is None else "connection reset")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._until_close = False
        elif name == b"content-type" and self._exchange is not None:
            self._exchange.is_events = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.feed(self._now, data)

    def on_message_complete(self) -> None:
        if self._exchange is not None and self._exchange.status // 100 == 1:
            return  # 100 Continue and its like: the answer follows
        if self._until_close or not self._parser.should_keep_alive():
            self.alive = False
        if self._exchange is not None:
            self._exchange.ended = self._now
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, problem: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(Broken(problem, unheard=not self._heard))


class Client:
    """Requests to one target over kept connections; no limit of its own."""

    def __init__(self, target: Target, timeout: float) -> None:
        """`timeout` in seconds, for a whole request."""
        self._target, self._timeout = target, timeout
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if target.tls else None
        self.connects = 0

    async def ask(self, data: bytes, exchange: Exchange) -> None:
        """Send and take the whole answer. Raises Broken; a stale connection is replaced once."""
        try:
            async with asyncio.timeout(self._timeout):
                kept = self._kept()
                connection = kept or await self._connect()
                try:
                    await connection.send(data, exchange)
                except Broken as broken:
                    if kept is None or not broken.unheard:
                        raise
                    connection = await self._connect()
                    await connection.send(data, exchange)
        except TimeoutError:
            raise Broken("timeout") from None
        if connection.alive:
            self._idle.append(connection)
        else:
            connection.close()

    def _kept(self) -> Connection | None:
        """A connection that the server has not closed meanwhile, as far as is known."""
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                return connection
        return None

    async def request(
        self, data: bytes, exchange: Exchange, origin: float, due: float | None = None
    ) -> Record:
        """One measured request; `origin` and `due` are moments of perf_counter."""
        began = time.perf_counter()
        problem = ""
        try:
            await self.ask(data, exchange)
        except Broken as broken:
            problem = str(broken)
        ended = exchange.ended or time.perf_counter()
        problem = problem or exchange.verdict()
        return Record(
            began=began - origin,
            events=tuple(at - began for at in exchange.times),
            ended=ended - began,
            status=exchange.status,
            problem=problem,
            tokens=exchange.tokens,
            prompt_tokens=exchange.prompt_tokens,
            late=max(0.0, began - due) if due is not None else 0.0,
        )

    async def _connect(self) -> Connection:
        self.connects += 1
        loop = asyncio.get_running_loop()
        make: Callable[[], Connection] = Connection
        target = self._target
        try:
            _, made = await loop.create_connection(make, target.host, target.port, ssl=self._tls)
        except ConnectionRefusedError:
            raise Broken("connection refused") from None
        except ssl.SSLError as error:
            raise Broken(f"TLS: {error.reason or error}") from None
        except socket.gaierror:
            raise Broken("unknown host") from None
        except OSError as error:
            raise Broken(error.strerror or "cannot connect") from None
        return made

    def close(self) -> None:
        """Close what is kept."""
        for each in self._idle:
            each.close()
        self._idle.clear()
