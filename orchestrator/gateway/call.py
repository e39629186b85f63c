"""One call of an engine: its answer's head, its events, its end, and the clock of its silence.

It knows nothing of the client; what it learns goes to the request that made it, once each:
`relay` for bytes, then `completed` or `failed`, and nothing after that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from orchestrator.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    NotFound,
    QueueFull,
    RequestError,
    UpstreamBroken,
    UpstreamInvalid,
    UpstreamTimeout,
)
from orchestrator.gateway.engine_connection import EngineConnection
from orchestrator.gateway.guard import Guard
from orchestrator.gateway.places import Lease
from orchestrator.gateway.solo import Run

_ERROR_BODY_LIMIT = 64 * 1024
_AFTER_FINISH_S = 2.0  # for a usage chunk and `[DONE]`

_NOT_OFFERED = (404, 405, 501)

# What comes of JSON whose parts are of kinds that nobody would expect.
ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

# How engines say that a prompt is too long: llama_cpp and ours, llama-server, vLLM.
_TOO_LONG = ("context_length", "exceed_context_size", "maximum context length")


class Asker(Protocol):
    """Who made the call."""

    def relay(self, call: Call, data: bytes, framed: bool = False) -> None:
        """Bytes for the client; `framed`: they are a chunk of HTTP already."""

    def completed(self, call: Call) -> None:
        """The answer is complete."""

    def failed(self, call: Call, error: RequestError) -> None:
        """The answer will not be complete."""

    def stale(self, call: Call, used: bool) -> None:
        """The connection broke before any byte of an answer; `used`: it had served before."""


class Call:
    """See the module. `first_s` is the time that the engine has for its first event, `next_s` for
    each other one."""

    __slots__ = (
        "_asked", "_asker", "_clock", "_error_body", "_headers", "_heard", "_limit", "_news",
        "_next_s", "_owing", "_run", "_status", "_tally", "_used", "connection", "guard", "lease",
    )  # fmt: skip

    def __init__(
        self,
        asker: Asker,
        lease: Lease,
        guard: Guard,
        first_s: float,
        next_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._asker: Asker | None = asker
        self._clock = clock
        self.lease, self.guard, self._tally = lease, guard, lease.tally
        self.connection: EngineConnection | None = None
        self._limit, self._next_s = first_s, next_s
        self._heard = 0.0
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._error_body = b""
        self._owing = self._used = self._news = False
        self._run: Run | None = None
        self._asked = 0.0

    def send(self, connection: EngineConnection, request: bytes) -> None:
        """Begin."""
        self._heard = self._asked = self._clock()
        self._used = connection.used
        self._owe(True)
        if self._run is None:
            self._run = self._tally.solo.begin()
        connection.send(self, request)

    def close(self) -> None:
        """Let go: of a connection whose answer is complete, or of the engine's work."""
        self._asker = None
        self._owe(False)
        if self._run is not None:
            self._alone(self._run)
            self._run = None
        if self.connection is None:
            return
        if self.guard.done:
            self.connection.let_go()
        else:
            self.connection.abort()

    def pause(self) -> None:
        """The client takes nothing now: neither does the gateway, and nobody owes a word."""
        if self.connection is not None:
            self.connection.pause()
            self._owe(False)

    def resume(self) -> None:
        """The client takes again."""
        if self.connection is not None:
            self._heard = self._asked = self._clock()
            self.connection.resume()
            self._owe(True)

    def check(self, now: float) -> None:
        """End a call whose engine has been silent for too long."""
        if self._news:
            self._news, self._heard = False, now
        if not self._owing or now - self._heard < self._limit:
            return
        if self._status not in (0, 200):
            error: RequestError = UpstreamTimeout("the engine stalled in its error answer")
        elif not self._status:
            error = UpstreamTimeout(f"the engine did not answer for {self._limit:g} s")
        else:
            error = UpstreamTimeout(f"the engine sent nothing for {self._limit:g} s")
        self.guard.broke(error)
        self._settle()

    # --- from the connection --------------------------------------------------------------------

    def headed(self, status: int, headers: dict[bytes, bytes]) -> None:
        self._status, self._headers = status, headers
        if status == 200:
            kind = headers.get(b"content-type", b"")
            if not kind.startswith(self.guard.kind):
                shown = kind.decode("latin-1") or "no content type"
                self.guard.broke(UpstreamInvalid(f"the engine answered {shown}"))

    def received(self, data: bytes) -> None:
        if self._asker is None:
            return
        if self._status != 200:
            self._error_body += data[:_ERROR_BODY_LIMIT]
            if len(self._error_body) > _ERROR_BODY_LIMIT:
                self._refused()
            return
        guard = self.guard
        before, pieces, finished = guard.events, guard.pieces, guard.finish_reason
        try:
            out = guard.feed(data)
        except ODD:
            out = b""
            guard.broke(_nonsense())
        if guard.events != before:
            self._tally.relayed += guard.events - before
            self._news = True
            if (run := self._run) is not None and run.alone and finished is None:
                asked, self._asked = self._asked, self._clock()
                run.came(asked, self._asked, guard.pieces - pieces)
            if guard.finish_reason is not None:
                self._limit = _AFTER_FINISH_S
            else:
                self._limit = self._next_s
        if out or guard.begun:
            self._asker.relay(self, out)
        if guard.done or guard.error is not None:
            self._settle()

    def chunk(self, data: bytes) -> bool:
        """Take a read that is one whole chunk, framing included; False: it has to be parsed."""
        asker, guard = self._asker, self.guard
        if asker is None:
            return False
        pieces = guard.pieces
        try:
            out = guard.chunk(data)
        except ODD:
            guard.broke(_nonsense())
            self._settle()
            return True
        if out is None:
            return False
        self._tally.relayed += 1
        self._news = True
        if (run := self._run) is not None and run.alone:
            asked, self._asked = self._asked, self._clock()
            run.came(asked, self._asked, guard.pieces - pieces)
        self._limit = self._next_s
        asker.relay(self, out, out is data)
        return True

    def ended(self) -> None:
        if self._asker is None:
            return
        if self._status != 200:
            self._refused()
            return
        self.guard.end()
        self._settle()

    def lost(self, silent: bool) -> None:
        if self._asker is None:
            return
        if silent:
            self._owe(False)
            self._asker.stale(self, self._used)
            return
        if self._status not in (0, 200):  # it died in its own error text, and has said enough
            self._refused()
            return
        if self.guard.begun:
            told = "the engine's connection broke before its answer was complete"
        else:
            told = "the engine's connection broke before its answer began"
        self.guard.broke(UpstreamBroken(told))
        self._settle()

    # --- ours -----------------------------------------------------------------------------------

    def _alone(self, run: Run) -> None:
        """Where this stream had the engine to itself it tells how fast that is."""
        solo, guard = self._tally.solo, self.guard
        solo.end(run)
        if guard.done and run.alone:
            counted = (guard.usage or {}).get("completion_tokens")
            solo.add(run, counted if isinstance(counted, int) else None)

    def _refused(self) -> None:
        self.guard.broke(refusal(self._status, self._headers, self._error_body))
        self._settle()

    def _settle(self) -> None:
        asker = self._asker
        if asker is None:
            return
        error = self.guard.error
        self.close()
        if error is None:
            asker.completed(self)
        else:
            asker.failed(self, error)

    def _owe(self, owing: bool) -> None:
        if owing != self._owing:
            self._owing = owing
            self._tally.owed += 1 if owing else -1


def died() -> UpstreamBroken:
    """What is told when the connection was lost before a byte of an answer."""
    return UpstreamBroken("the engine's connection broke before its answer began")


def _nonsense() -> UpstreamInvalid:
    return UpstreamInvalid("the engine sent an event that makes no sense")


def refusal(status: int, headers: dict[bytes, bytes], body: bytes) -> RequestError:
    """The engine's error answer as one of ours; its words only where they are about the request."""
    try:
        error = json.loads(body).get("error", {})
    except (ValueError, AttributeError):
        error = {}
    error = error if isinstance(error, dict) else {}
    message = " ".join(str(error.get("message", "")).split())[:300]
    told = f"{error.get('code')} {error.get('type')} {message}"
    if status == 400 and any(word in told for word in _TOO_LONG):
        return ContextLengthExceeded(message or "the prompt is too long")
    if status in (400, 422):
        return BadRequest(f"the engine refuses the request: {message or f'HTTP {status}'}")
    if status == 429:
        return QueueFull("the engine's own queue is full", retry_after=_retry_after(headers))
    if status == 503:
        return EngineBusy("the engine takes nothing now", retry_after=_retry_after(headers))
    if status in _NOT_OFFERED:
        return NotFound(f"the engine does not offer this: {message or f'HTTP {status}'}")
    return EngineError(f"the engine answered HTTP {status}")


def _retry_after(headers: dict[bytes, bytes]) -> float:
    """The engine's own word, in seconds, within reason."""
    told = headers.get(b"retry-after", b"")
    return min(60.0, max(1.0, float(told))) if told.isdigit() else 1.0
