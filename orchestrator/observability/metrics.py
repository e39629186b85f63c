"""The gateway's Prometheus series; those of API keys are in `key_metrics`.

Labels come from closed sets (known models, known codes, route templates), so that no client can
grow them. Series of a model are created when it becomes known, not at its first trouble.
`docs/reference/metrics.md` is generated from these objects.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, generate_latest

from orchestrator.observability.key_metrics import KeyMetrics
from orchestrator.observability.plain import PlainCounter, PlainHistogram, own_registry
from orchestrator.observability.reasons import (
    BROKEN,
    OTHER,
    REFUSALS,
    REFUSED_ANYWAY,
    REFUSED_MODEL,
    RETRIED,
    UPSTREAM,
)

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


ALIKE = frozenset({"engineroom_model_ready", "engineroom_replicas_ejected"})
"""What every worker of a gateway sees alike; all else is added up."""


class GatewayMetrics:
    """Series of one gateway process. `model` is a known model or "other"."""

    def __init__(self) -> None:
        self.registry = own_registry()
        reg = self.registry
        self.requests = PlainCounter(
            "engineroom_requests_total",
            "Requests by model, route template and HTTP status; broken streams by their error's.",
            ["model", "route", "code"],
            reg,
        )
        self.seconds = PlainHistogram(
            "engineroom_request_seconds",
            "Whole request, queue included.",
            ["model", "route"],
            _SHORT,
            reg,
        )
        self.ttft = PlainHistogram(
            "engineroom_ttft_seconds",
            "Time to first token (TTFT), queue included.",
            ["model"],
            _SHORT,
            reg,
        )
        self.itl = PlainHistogram(
            "engineroom_itl_seconds",
            "Inter-token latency (ITL): the mean between two tokens of an answer, by answer.",
            ["model"],
            _TOKEN,
            reg,
        )
        self.queue = PlainHistogram(
            "engineroom_queue_seconds",
            "Time that a request waited for a lease, or waited in vain.",
            ["model"],
            _SHORT,
            reg,
        )
        self.tokens = PlainCounter(
            "engineroom_generated_tokens_total", "Generated tokens.", ["model"], reg
        )
        self.prompt_tokens = PlainCounter(
            "engineroom_prompt_tokens_total",
            "Tokens of prompts that were answered; estimated where the engine does not count them.",
            ["model"],
            reg,
        )
        self.rejects = PlainCounter(
            "engineroom_rejects_total",
            "Requests refused, by the gateway or by the engine that they were for, by error code.",
            ["model", "reason"],
            reg,
        )
        self.in_flight = Gauge("engineroom_in_flight", "Leased requests.", ["model"], registry=reg)
        self.waiting = Gauge(
            "engineroom_waiting", "Requests in the queue.", ["model"], registry=reg
        )
        self.ready = Gauge(
            "engineroom_model_ready", "1 when a request can be leased.", ["model"], registry=reg
        )
        self.broken = Counter(
            "engineroom_streams_broken_total",
            "Answers that ended with an error after they began.",
            ["model", "code"],
            registry=reg,
        )
        self.disconnects = Counter(
            "engineroom_client_disconnects_total",
            "Requests cancelled: their clients left before the answer was complete.",
            ["model"],
            registry=reg,
        )
        self.connections = Gauge(
            "engineroom_connections", "Open connections of clients.", registry=reg
        )
        self.tasks = Gauge(
            "engineroom_gateway_tasks",
            "Asyncio tasks of the gateway's processes; they grow where something leaks.",
            registry=reg,
        )
        self.slow_clients = Counter(
            "engineroom_slow_clients_total",
            "Clients that took nothing for write_timeout_s and were cut off.",
            registry=reg,
        )
        self.spans = PlainCounter(
            "engineroom_spans_total",
            "Spans of traces: made, sent to the collector, lost (not taken, or not fast enough).",
            ["result"],
            reg,
        )
        for result in ("made", "sent", "lost"):
            self.spans.labels(result)
        self._add_engine_faults()
        self.keys = KeyMetrics(reg)
        self._models: set[str] = set()
        self._create(OTHER, REFUSED_ANYWAY)
        self.disconnects.labels(OTHER)

    def _add_engine_faults(self) -> None:
        reg = self.registry
        self.upstream_errors = Counter(
            "engineroom_upstream_errors_total",
            "Calls that failed through the engine's fault, by error code.",
            ["model", "code"],
            registry=reg,
        )
        self.retries = Counter(
            "engineroom_retries_total",
            "Requests tried once more before their first byte, by the error before.",
            ["model", "code"],
            registry=reg,
        )
        self.retries_refused = Counter(
            "engineroom_retries_refused_total",
            "Requests not tried again because a fifth of all had been.",
            ["model"],
            registry=reg,
        )
        self.ejections = Counter(
            "engineroom_ejections_total",
            "Replicas left out for a while after failures in a row.",
            ["model"],
            registry=reg,
        )
        self.ejected = Gauge(
            "engineroom_replicas_ejected", "Replicas left out now.", ["model"], registry=reg
        )
        self.quarantined = Counter(
            "engineroom_quarantined_requests_total",
            "Requests refused because their body ended two engines.",
            ["model"],
            registry=reg,
        )

    def known(self, models: Iterable[str], routes: Iterable[str]) -> None:
        """Create the series of new models, on these routes; nobody's gauges go on."""
        now = set(models)
        for model in now - self._models:
            self._create(model, REFUSED_MODEL)
            for route in routes:
                self.requests.labels(model, route, "200")
            for series in (self.ttft, self.itl, self.queue, self.tokens, self.prompt_tokens):
                series.labels(model)
            for own in (self.disconnects, self.retries_refused, self.ejections, self.quarantined):
                own.labels(model)
            for counter, codes in (
                (self.broken, BROKEN), (self.upstream_errors, UPSTREAM), (self.retries, RETRIED),
            ):  # fmt: skip
                for code in codes:
                    counter.labels(model, code)
        for model in self._models - now:
            for gauge in (self.in_flight, self.waiting, self.ready, self.ejected):
                gauge.remove(model)
        self._models = now

    def _create(self, model: str, reasons: Iterable[str]) -> None:
        for reason in sorted(reasons):
            self.rejects.labels(model, reason)

    def refused(self, model: str, code: str) -> None:
        """Count a request that gets no answer, where that is a refusal."""
        if code in REFUSALS:
            self.rejects.labels(model, code).inc()

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
