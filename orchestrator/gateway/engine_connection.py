"""One HTTP/1.1 connection to an engine: a call at a time, its answer parsed by httptools.

A connection belongs to one call from `send` until it has let go of it. That happens before the
connection can be lent again, and whatever a call asked of it, such as not to read, is undone.
"""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple, Protocol

import httptools

_HEAD_LIMIT = 64 * 1024
_BUFFER = 128 * 1024  # of the kernel: an engine shall notice soon that its reader's reader stopped
_TRAILER_S = 1.0  # for the end of an answer that nobody needs any more


class Address(NamedTuple):
    """Where an engine listens, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool = False


class Receiver(Protocol):
    """What a connection tells its call. None of them is called once it has let go."""

    connection: EngineConnection | None
    """Set by whoever lends it, taken away before it is lent again."""

    def headed(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The head of the answer is here."""

    def received(self, data: bytes) -> None:
        """All of its body that came with one read."""

    def chunk(self, data: bytes) -> bool:
        """A read in the middle of a chunked body, where a chunk may begin: whether it was one whole
        chunk, and taken as such. It is not parsed then."""

    def ended(self) -> None:
        """The answer is complete; the connection has let go."""

    def lost(self, silent: bool) -> None:
        """The connection broke and has let go. `silent`: before any byte of an answer."""


class Keeper(Protocol):
    """Who keeps connections."""

    def opened(self, connection: EngineConnection) -> None: ...
    def free(self, connection: EngineConnection) -> None: ...
    def closed(self, connection: EngineConnection) -> None: ...


class EngineConnection(asyncio.Protocol):
    """See the module."""

    def __init__(self, keeper: Keeper, address: Address) -> None:
        self.address = address
        self.used = False  # or idle, before the call of now
        self._keeper = keeper
        self._call: Receiver | None = None
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # of httptools, for which it is looked up once
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._busy = self._silent = self._told = self._paused = False
        self._complete = self._lasting = False
        self._between = False  # the parser has had whole chunks, and waits for the next one
        self._head_size = 0
        self._since = self._loop.time()

    # --- for calls ------------------------------------------------------------------------------

    def send(self, call: Receiver, request: bytes) -> None:
        """Begin a call."""
        self._call, call.connection = call, self
        self._busy = self._silent = True
        self._told = self._complete = self._between = False
        self._status = self._head_size = 0
        self._transport.write(request)

    def let_go(self) -> None:
        """The call needs no more of the answer than it has; what is left is read and dropped."""
        self._forget()
        self.resume()
        self._since = self._loop.time()

    def abort(self) -> None:
        """Close at once: an engine that works for the call notices."""
        self._forget()
        self._transport.abort()

    def pause(self) -> None:
        """Do not read."""
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def usable(self, idle_s: float) -> bool:
        """Whether another call may be made on it."""
        return not self._transport.is_closing() and self._loop.time() - self._since < idle_s

    def outlived(self, idle_s: float) -> bool:
        """Whether it has no call, and had none for too long."""
        limit = _TRAILER_S if self._busy else idle_s
        return self._call is None and self._loop.time() - self._since >= limit

    # --- asyncio --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._keeper.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._busy:  # nobody asked
            self._transport.abort()
            return
        if self._between:
            if self._call is not None and self._call.chunk(data):
                return
            self._between = False
        self._silent = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break()
            return
        if not self._status:
            self._head_size += len(data)
            if self._head_size > _HEAD_LIMIT:
                self._break()
            return
        if self._told and not self._complete:  # the usual read, in the middle
            self._pass(data)
        else:
            self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keeper.closed(self)
        self._parser = None  # type: ignore[assignment]  # it holds this object
        call = self._forget()
        if call is None:
            return
        if self._status and not self._framed and exc is None:  # its end is the answer's
            call.ended()
        else:
            call.lost(self._silent)

    # --- httptools ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._status = status if status >= 200 else 0

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True
            self._lasting = self._parser.should_keep_alive()

    # --- ours -----------------------------------------------------------------------------------

    @property
    def _framed(self) -> bool:
        return b"content-length" in self._headers or b"transfer-encoding" in self._headers

    def _pass(self, data: bytes) -> None:
        """Give the call what this read brought, in the middle of an answer.

        Where the parser took a whole chunk for just that, it is between two chunks now. (In the
        middle of one the chunk's size would have been part of the body.)
        """
        parts, call = self._parts, self._call
        if len(parts) == 1:
            body = parts[0]
            size = b"%x\r\n" % len(body)
            self._between = len(data) == len(size) + len(body) + 2 and data.startswith(size)
        else:
            body = b"".join(parts)
        parts.clear()
        if body and call is not None:
            call.received(body)

    def _tell(self) -> None:
        """The same at the beginning, and at the end: let go of it first where that is all."""
        parts, call = self._parts, self._call
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if call is not None and not self._told:
            self._told = True
            call.headed(self._status, self._headers)
        if self._complete:
            self._finish()
        if call is not None:
            if data:
                call.received(data)
            if self._complete:
                call.ended()

    def _finish(self) -> None:
        self._forget()
        self._busy, self.used = False, True
        self.resume()
        if self._lasting:
            self._since = self._loop.time()
            self._keeper.free(self)
        else:
            self._transport.close()

    def _forget(self) -> Receiver | None:
        call, self._call = self._call, None
        if call is not None:
            call.connection = None
        return call

    def _break(self) -> None:
        call = self._forget()
        self._transport.abort()
        if call is not None:
            call.lost(silent=False)
