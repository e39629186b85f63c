"""Requests that are told of when they are over: as a trace, as a line of the log, or as both.

Where neither is asked for, plain jobs are made and nothing here runs. No part of a prompt or of an
answer is told, only how long, how much, by whom and how it ended.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from orchestrator.control import GatewayConfig
from orchestrator.errors import EngineRoomError
from orchestrator.gateway.call import Call
from orchestrator.gateway.desk import Desk
from orchestrator.gateway.engine_connection import EngineConnection
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.job import Job
from orchestrator.gateway.places import Lease
from orchestrator.observability.logs import told
from orchestrator.observability.plain import PlainCounter

if TYPE_CHECKING:
    from orchestrator.observability.tracing import Trace, Tracing

_log = logging.getLogger("engineroom.requests")
_OURS = 499
T = TypeVar("T")


class Witness:
    """Makes the jobs of a gateway. `tracing` None: no traces; `logs`: a line for each request."""

    def __init__(self, tracing: Tracing | None, logs: bool) -> None:
        self.tracing, self.logs = tracing, logs
        self._broken = False

    async def close(self) -> None:
        """Send what is not sent yet."""
        if self.tracing is not None:
            await self.tracing.close()

    def job(self, desk: Desk, exchange: Exchange, path: str) -> Job:
        """A job that is told of."""
        return WitnessedJob(desk, exchange, path, self)

    def begin(self, path: str, headers: Mapping[bytes, bytes]) -> Trace | None:
        """The trace of a request that came; None where there are none."""
        tracing = self.tracing
        return None if tracing is None else self.safe(lambda: tracing.begin(path, headers), None)

    def safe(self, work: Callable[[], T], otherwise: T) -> T:
        """What fails here costs a trace and nothing else; it is said once."""
        try:
            return work()
        except Exception:  # noqa: BLE001 - the request is worth more than what is told of it
            if not self._broken:
                self._broken = True
                _log.exception("a trace could not be made")
            return otherwise


def witness(config: GatewayConfig, spans: PlainCounter) -> Witness | None:
    """Who is told, as a gateway is configured; None for nobody."""
    tracing: Tracing | None = None
    if config.otlp_endpoint is not None:
        from orchestrator.observability.tracing import Tracing  # needs what may not be installed

        name = f"{config.name}-{os.getpid()}"
        share, version = config.trace_share, config.version
        tracing = Tracing(config.otlp_endpoint, share, version, name, spans)
    if tracing is None and not config.log_requests:
        return None
    return Witness(tracing, config.log_requests)


class WitnessedJob(Job):
    """A job, and what is told of it."""

    __slots__ = ("_error", "_replica", "_trace", "_waited", "_witness")

    def __init__(self, desk: Desk, exchange: Exchange, path: str, witness: Witness) -> None:
        super().__init__(desk, exchange, path)
        self._witness = witness
        self._error: str | None = None
        self._replica: str | None = None
        self._waited = 0.0
        self._trace = witness.begin(path, exchange.headers)

    def fail(self, error: EngineRoomError) -> None:
        if not self._over:
            self._error = error.code
        super().fail(error)

    def _placed(self, lease: Lease, waited: bool = False) -> None:
        self._replica, trace = lease.replica.id, self._trace
        self._waited += lease.waited_s
        if waited and trace is not None:
            self._witness.safe(lambda: trace.waited(lease.waited_s), None)
        super()._placed(lease, waited)

    def _send(self, call: Call, connection: EngineConnection) -> None:
        replica, order, body, trace = call.lease.replica, self._order, self._request, self._trace
        more = b""
        if trace is not None:
            more = self._witness.safe(lambda: trace.call(replica.id), b"")
        head = self._desk.pool.head(replica.base_url, order.path)
        call.send(connection, b"%b%d\r\n%b\r\n%b" % (head, len(body), more, body))

    def _end(self, code: str) -> None:
        if self._replica is None:  # it was never served: all it did was wait
            self._waited = time.monotonic() - self._began
        super()._end(code)
        trace = self._trace
        if trace is not None:
            self._witness.safe(lambda: trace.end(self._attributes(int(code)), self._error), None)
        if self._witness.logs:
            self._say(code, None if trace is None else trace.id)

    def _attributes(self, code: int) -> dict[str, str | int | float | bool]:
        prompt, completion = self._used
        found: dict[str, str | int | float | bool | None] = {
            "http.request.method": "POST", "http.route": self._path,
            "http.response.status_code": code, "gen_ai.request.model": self.model,
            "gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": completion,
            "engineroom.request_id": self._exchange.id.decode(), "engineroom.tries": self._tries,
            "engineroom.queue_s": self._waited, "engineroom.stream": self._stream,
            "engineroom.cancelled": code == _OURS, "engineroom.replica": self._replica,
            "engineroom.ttft_s": self._ttft,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def _say(self, code: str, trace: str | None) -> None:
        prompt, completion = self._used
        ttft = None if self._ttft is None else round(self._ttft, 4)
        _log.info("request over", extra=told(
            request=self._exchange.id.decode(), trace=trace, path=self._path, model=self.model,
            status=int(code), error=self._error, seconds=round(time.monotonic() - self._began, 4),
            queue_s=round(self._waited, 4), ttft_s=ttft, prompt_tokens=prompt,
            generated_tokens=completion, tries=self._tries, replica=self._replica,
            stream=self._stream, key=self.holder.name if hasattr(self, "holder") else None,
        ))  # fmt: skip
