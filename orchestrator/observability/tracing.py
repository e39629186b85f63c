"""Traces of requests, sent to an OTLP collector over HTTP. Imported only where they are asked for.

Spans are put into a bounded queue, which a thread empties: a collector that is slow, broken or away
costs traces and nothing else. Trouble with it is said once, and once more when it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from orchestrator.observability.plain import PlainCounter
from orchestrator.observability.span_queue import SpanQueue

_log = logging.getLogger("engineroom.traces")
_EXPORT_S = 5.0
_CLOSE_S = 2.0
_HEADERS = ("traceparent", "tracestate")
_WORDS = TraceContextTextMapPropagator()
Attributes = Mapping[str, str | int | float | bool]


class Trace:
    """The spans of one request: the whole, its wait in the queue, its calls of engines."""

    __slots__ = ("_call", "_context", "_span", "_tracing")

    def __init__(self, tracing: Tracing, path: str, parent: Context) -> None:
        self._tracing = tracing
        self._span = tracing.span(f"POST {path}", SpanKind.SERVER, parent)
        self._context = set_span_in_context(self._span, parent)
        self._call: Span | None = None

    @property
    def id(self) -> str:
        """The trace's id, as collectors show it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def waited(self, seconds: float) -> None:
        """It stood in the queue until now."""
        now = time.time_ns()
        began = now - int(seconds * 1e9)
        self._tracing.span("queue", SpanKind.INTERNAL, self._context, began).end(now)

    def call(self, replica: str) -> bytes:
        """An engine is asked; the header lines that tell it whose request it is."""
        self._end_call()
        call = self._call = self._tracing.span("engine", SpanKind.CLIENT, self._context)
        call.set_attribute("engineroom.replica", replica)
        told: dict[str, str] = {}
        _WORDS.inject(told, set_span_in_context(call, self._context))
        return "".join(f"{name}: {value}\r\n" for name, value in told.items()).encode("latin-1")

    def end(self, attributes: Attributes, error: str | None) -> None:
        """The request is over; `error` is the code of what it ended in."""
        self._end_call()
        self._span.set_attributes(attributes)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _end_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.end()


class Tracing:
    """All traces of one gateway process. `share` of them is kept where the client does not say."""

    def __init__(
        self, endpoint: str, share: float, version: str, name: str, spans: PlainCounter
    ) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # see `_Collector`
        told = {"service.name": "engineroom-gateway", "service.version": version}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({**told, "service.instance.id": name}),
            shutdown_on_exit=False,
        )
        self._made = spans.labels("made")
        collector = _Collector(endpoint, spans)
        queue = SpanQueue(collector.send, collector.dropped, collector.close)
        self._provider.add_span_processor(queue)
        self._tracer = self._provider.get_tracer("engineroom", version)

    def begin(self, path: str, headers: Mapping[bytes, bytes]) -> Trace:
        """A request came; where its `traceparent` makes sense it belongs to that trace."""
        given = {
            name: value.decode("latin-1")
            for name in _HEADERS
            if (value := headers.get(name.encode())) is not None
        }
        return Trace(self, path, _WORDS.extract(given, Context()))

    def span(self, name: str, kind: SpanKind, parent: Context, began: int | None = None) -> Span:
        """A span below `parent`; `began` in nanoseconds since the epoch."""
        span = self._tracer.start_span(name, parent, kind, start_time=began)
        if span.is_recording():
            self._made.inc()
        return span

    async def close(self) -> None:
        """Send what is left, for two seconds at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut, name="end of traces", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await done.wait()


class _Collector:
    """The exporter, with its trouble counted and said once; over where all that waited was sent."""

    def __init__(self, endpoint: str, spans: PlainCounter) -> None:
        whole = (
            endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
        )
        self._endpoint, self._inner = whole, OTLPSpanExporter(whole, timeout=_EXPORT_S)
        self._sent, self._lost = spans.labels("sent"), spans.labels("lost")
        self._lock = threading.Lock()  # spans are dropped by the loop, sent by the queue's thread
        self._trouble = False

    def send(self, spans: Sequence[ReadableSpan], more: bool) -> None:
        """Send them; `more` are waiting. Runs in the queue's thread."""
        try:
            result = self._inner.export(spans)
        except Exception:  # noqa: BLE001 - whatever it is, it costs these spans and nothing else
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._lose(len(spans), "does not take traces; they are dropped")
            return
        with self._lock:
            self._sent.inc(len(spans))
            over, self._trouble = self._trouble and not more, self._trouble and more
        if over:
            self._say("takes traces again")

    def dropped(self) -> None:
        """One that there was no room for."""
        self._lose(1, "does not take traces fast enough; some are dropped")

    def close(self) -> None:
        """The end: what is under way is given up."""
        self._inner.shutdown()  # type: ignore[no-untyped-call]

    def _lose(self, count: int, how: str) -> None:
        with self._lock:
            self._lost.inc(count)
            known, self._trouble = self._trouble, True
        if not known:
            self._say(how)

    def _say(self, how: str) -> None:
        _log.warning("the collector at %s %s", self._endpoint, how)
