"""The server's protocol: HTTP/1.1 by uvicorn and httptools, the generating paths without ASGI.

The only part that knows the HTTP server. Requests to the paths of `READERS` are served by callbacks
from here down to the engine's connection and back; all others go to the ASGI application as usual.
Of uvicorn's internals it uses those named in `tests/contract/test_uvicorn.py`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Literal

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orchestrator.errors import (
    BadRequest,
    BodyTooLarge,
    EngineRoomError,
    HeadTooLarge,
    RequestTimeout,
)
from orchestrator.gateway.connections import Connections
from orchestrator.gateway.desk import Desk
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.framing import HEAD_LIMIT, head_of
from orchestrator.gateway.job import Job
from orchestrator.gateway.readers import READERS
from orchestrator.observability.reasons import OTHER

_PATHS = {path.encode(): path for path in READERS}
_BUFFER = 128 * 1024  # bytes that the kernel keeps for one client; Linux takes it twice
_IDLE_S = 60.0  # between requests
_LINGER_S = 2.0  # for a client that still sends what was refused
_BODY_SHARE = 8  # bytes on the wire for one of a body: chunks of one byte take six
_PIPELINED = 16  # requests that may wait behind a running one before nothing is read any more
MakeJob = Callable[[Desk, Exchange, str], Job]
Phase = Literal["idle", "head", "busy", "lingering"]


class ClientProtocol(HttpToolsProtocol):
    """One client's connection."""

    def __init__(
        self, connections: Connections, desk: Desk, make: MakeJob = Job, **given: Any
    ) -> None:
        super().__init__(**given)
        self._all, self._desk, self._make = connections, desk, make
        self._stuck: asyncio.TimerHandle | None = None
        self._running: Exchange | None = None
        self._phase: Phase = "idle"
        self.clock = self.loop.time
        self._since = self.clock()
        self._in_head = True
        self._now = self._read = 0  # bytes: of this read, and of the head or body that is read
        self._most = _BODY_SHARE * desk.max_body_bytes + HEAD_LIMIT
        self._refusal: EngineRoomError | None = None
        self._asgi = self._after_another = self._advancing = False
        self._unparsed = 0
        self.url = b""

    # --- the connection -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.came(self)
        sock = transport.get_extra_info("socket")
        if sock is None:
            return
        # A reader that stops would otherwise be sent megabytes before anybody notices.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The end of an answer fits the buffer, and would wait for its reader for ever. Twice
            # the timeout: where the buffer is full, ours comes first and is counted.
            limit = max(1, int(self._all.write_timeout_s * 2000))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.went(self)
        self._cancel()
        running, self._running = self._running, None
        if running is not None:
            self._desk.watch.all.discard(running)
            running.gone()
        self.pipeline.clear()
        self.cycle = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._phase == "lingering":
            return
        if self._phase == "idle":
            self._phase, self._since = "head", self.clock()
        self._now = len(data)
        self._read += self._now
        self._after_another = False
        if self._unparsed:
            self._rest(data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing here upgrades: what was asked is answered as if that had not been asked for.
            self._rest(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._ending:
                self._refuse(self._refusal or BadRequest("this is not HTTP as it is taken here"))
            return
        if self._in_head and self._read > HEAD_LIMIT:
            self._refuse(HeadTooLarge(f"the request's head has more than {HEAD_LIMIT} bytes"))
        elif self._read > self._most:
            self._refuse(BodyTooLarge(f"the body takes more than {self._most} bytes to send"))

    @property
    def _ending(self) -> bool:
        """Whether nothing is taken any more: an answer was the last one here."""
        return self._phase == "lingering" or self.transport.is_closing()

    def _rest(self, data: bytes) -> None:
        """Bytes of a body that the parser left alone, because of an upgrade that is not made."""
        exchange = self.cycle
        if not self._unparsed or not isinstance(exchange, Exchange):
            return
        body = data[: self._unparsed]
        self._unparsed -= len(body)
        exchange.on_body(body)
        if not self._unparsed:
            exchange.on_message_complete()

    def sweep(self, now: float) -> None:
        """Close what is silent for too long."""
        waited = now - self._since
        if self._phase == "head" and waited >= self._desk.head_s:
            told = f"the request's head did not arrive within {self._desk.head_s:g} s"
            self._refuse(RequestTimeout(told))
        elif self._phase == "idle" and waited >= _IDLE_S:
            self.transport.close()
        elif self._phase == "lingering" and waited >= _LINGER_S:
            self.transport.abort()

    def close(self) -> None:
        """Close when all is written."""
        self.transport.close()

    # --- parsing --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._in_head, self._read = True, 0 if self._after_another else self._now

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, headers = self.parser, self.headers
        if self._phase == "lingering" or self.transport.is_closing():
            raise ValueError("what follows the last answer is not read")
        version = parser.get_http_version()
        found = head_of(self.url, version, headers, self._read)
        if isinstance(found, EngineRoomError):
            self._refusal = found
            raise ValueError(found.message)
        self._phase, self._in_head, self._read = "busy", False, 0
        path = _PATHS.get(self.url) or _path_of(self.url)
        if path is None or parser.get_method() != b"POST":
            self._to_asgi(found)
            return
        self._asgi = False
        before = self.cycle
        modern = version == "1.1"
        lasting = modern and parser.should_keep_alive()
        if parser.should_upgrade():
            lasting = False
            if b"transfer-encoding" in found:
                self._refusal = BadRequest("a chunked body goes with no upgrade: send its length")
                raise ValueError(self._refusal.message)
            length = found.get(b"content-length", b"0")
            self._unparsed = int(length) if length.isdigit() else 0
        desk = self._desk
        limit, name = desk.max_body_bytes, desk.ids.of(found.get(b"x-request-id"))
        exchange = Exchange(self, path, found, lasting, modern, limit, desk.body_s, name)
        self.cycle = exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._begin(exchange)
        else:
            self.pipeline.appendleft((exchange, None))  # type: ignore[arg-type]
            if len(self.pipeline) >= _PIPELINED:
                self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        if self._asgi:
            super().on_body(body)
        elif self.cycle is not None:
            self.cycle.on_body(body)  # type: ignore[attr-defined]

    def on_message_complete(self) -> None:
        self._after_another = True
        if self._asgi:
            super().on_message_complete()
        elif self.cycle is not None and not self._unparsed:
            self.cycle.on_message_complete()  # type: ignore[attr-defined]

    def _to_asgi(self, found: dict[bytes, bytes]) -> None:
        """Have uvicorn make its scope after all."""
        self._asgi = True
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers += headers
        self.expect_100_continue = found.get(b"expect", b"").lower() == b"100-continue"
        super().on_headers_complete()

    # --- answering ------------------------------------------------------------------------------

    def _begin(self, exchange: Exchange) -> None:
        self._running = exchange
        desk = self._desk
        desk.watch.all.add(exchange)
        job = self._make(desk, exchange, exchange.path)
        try:
            if (doors := desk.doors).closed:
                origin = exchange.headers.get(b"origin", b"").decode("latin-1") or None
                exchange.more = b"".join(b"%b: %b\r\n" % each for each in doors.answer(origin))
            address = self.client[0] if self.client else ""
            job.holder = desk.admit(exchange.headers, address)
            exchange.begin(job, self.clock())
        except EngineRoomError as error:
            job.fail(error)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """uvicorn's way to start what waited behind another request."""
        if isinstance(cycle, Exchange):
            self._begin(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def common_headers(self) -> bytes:
        """The header lines of every answer."""
        return self._all.common_headers(self.server_state.default_headers)

    def finished(self, exchange: Exchange) -> None:
        """An answer of ours is written."""
        self._running = None
        self._desk.watch.all.discard(exchange)
        if not exchange.keep_alive:
            self._close(linger=exchange.more_body)
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Any answer is written. Idle connections are closed by `sweep`: no timer for each."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._phase == "lingering":
            return
        self.flow.resume_reading()
        if self._advancing:  # the one below goes on
            return
        if self.pipeline:
            self._advance()
            if self._ending:
                return
        if self.cycle is None or self.cycle.response_complete:
            self._phase, self._since = "idle", self.clock()

    def _advance(self) -> None:
        """Begin what waits behind the answer that is written."""
        self._advancing = True
        while self.pipeline and self._running is None and not self._ending:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            if not isinstance(cycle, Exchange):
                break
        self._advancing = False

    def _refuse(self, error: EngineRoomError) -> None:
        """Answer what is no request of ours and close; where an answer runs it is cut off."""
        running = self._running
        if running is not None and running.more_body and running.worker is not None:
            running.worker.fail(error)  # its body turned out to be none
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        self._desk.metrics.refused(OTHER, error.code)
        body = orjson.dumps(error.envelope())
        head = f"HTTP/1.1 {error.http_status} \r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(head.encode() + self.common_headers() + b"\r\n" + body)
        self._close(linger=True)

    def _close(self, linger: bool) -> None:
        """Close; a client that still sends would lose the answer to a reset without a while."""
        if not linger or self.transport.is_closing():
            self.transport.close()
            return
        self._phase, self._since = "lingering", self.loop.time()
        self.pipeline.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    # --- slow readers ---------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client's buffer is full."""
        super().pause_writing()
        if self._running is not None and self._running.worker is not None:
            self._running.worker.pause()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self._all.write_timeout_s, self._give_up)

    def resume_writing(self) -> None:
        """The client's buffer has room again."""
        super().resume_writing()
        if self._running is not None and self._running.worker is not None:
            self._running.worker.resume()
        self._cancel()

    def _give_up(self) -> None:
        self._stuck = None
        self._all.slow.inc()
        self.transport.abort()

    def _cancel(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


def _path_of(target: bytes) -> str | None:
    """The generating path in a target with a query; None for any other path."""
    return _PATHS.get(target.partition(b"?")[0])
