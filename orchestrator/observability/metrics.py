"""Every Prometheus series of Engine Room, in one file.

Labels come from closed sets (known models, known causes, route templates), so that no client can
grow them. Series of an engine are created when it becomes known, not at its first trouble.
`docs/reference/metrics.md` is generated from these objects.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from engine_launchers.base import CrashCause
from orchestrator import __version__
from orchestrator.observability.key_metrics import KeyMetrics
from orchestrator.observability.plain import PlainCounter, PlainHistogram

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LONG = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
STALLS = ("start", "wake", "probes", "requests", "work")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _registry() -> CollectorRegistry:
    """Empty. What is counted gets no second series that says since when: nobody asks for those."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    return CollectorRegistry()


class ControlMetrics:
    """Series of the supervisor."""

    def __init__(self) -> None:
        self.registry = _registry()
        reg = self.registry
        info = Gauge("engineroom_build_info", "Version that runs.", ["version"], registry=reg)
        info.labels(__version__).set(1)
        self._state = Gauge(
            "engineroom_engine_state",
            "1 for the lifecycle state an engine is in, 0 for the others.",
            ["engine", "state"],
            registry=reg,
        )
        self._transitions = Counter(
            "engineroom_engine_transitions_total",
            "Lifecycle transitions.",
            ["engine", "old", "new"],
            registry=reg,
        )
        self._restarts = Counter(
            "engineroom_engine_restarts_total",
            "Restarts that nobody asked for, by the cause of the exit before.",
            ["engine", "cause"],
            registry=reg,
        )
        self._stalls = Counter(
            "engineroom_engine_stalls_total",
            "Times that it was found to hang: start (does not get ready), wake, probes (does not "
            "answer), requests (breaks every one), work (does not get on with it).",
            ["engine", "kind"],
            registry=reg,
        )
        self._start = Histogram(
            "engineroom_engine_start_seconds",
            "From launch to ready.",
            ["engine"],
            buckets=_LONG,
            registry=reg,
        )
        self._rung = Gauge(
            "engineroom_plan_rung",
            "How often the plan was made smaller after a failure.",
            ["engine"],
            registry=reg,
        )
        self.gateways = Gauge(
            "engineroom_gateways_connected", "Gateways on the control channel.", registry=reg
        )
        self.storage = Gauge(
            "engineroom_storage_degraded",
            "1 while state is kept in memory only: the disk is full, read-only or broken.",
            registry=reg,
        )

    def add_engine(self, engine: str, states: Iterable[str]) -> None:
        """Create the series of a new engine."""
        for kind in STALLS:
            self._stalls.labels(engine, kind)
        for state in states:
            self._state.labels(engine, state).set(state == "stopped")
        for cause in CrashCause:
            self._restarts.labels(engine, cause.value)
        self._start.labels(engine)
        self._rung.labels(engine).set(0)

    def moved(self, engine: str, old: str, new: str, stall: str | None = None) -> None:
        """Count one transition, and the hang that it ends, by its kind."""
        if stall is not None and new == "stopping":
            self._stalls.labels(engine, stall).inc()
        self._state.labels(engine, old).set(0)
        self._state.labels(engine, new).set(1)
        self._transitions.labels(engine, old, new).inc()

    def restarted(self, engine: str, cause: CrashCause) -> None:
        """Count a restart after a crash."""
        self._restarts.labels(engine, cause.value).inc()

    def started(self, engine: str, seconds: float) -> None:
        """Observe the time from launch to ready."""
        self._start.labels(engine).observe(seconds)

    def relaxed(self, engine: str, rung: int) -> None:
        """Remember the rung of the plan in use."""
        self._rung.labels(engine).set(rung)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)


ALIKE = frozenset({"engineroom_model_ready", "engineroom_replicas_ejected"})
"""What every worker of a gateway sees alike; all else is added up."""


class GatewayMetrics:
    """Series of one gateway process. `model` is a known model or "other"."""

    def __init__(self) -> None:
        self.registry = _registry()
        reg = self.registry
        self.requests = PlainCounter(
            "engineroom_requests_total",
            "Requests by model, route template and HTTP status.",
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
        self.queue = PlainHistogram(
            "engineroom_queue_seconds",
            "Time that a request waited for a lease.",
            ["model"],
            _SHORT,
            reg,
        )
        self.tokens = PlainCounter(
            "engineroom_generated_tokens_total", "Generated tokens.", ["model"], reg
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
            "Clients that left before their answer was complete.",
            ["model"],
            registry=reg,
        )
        self.connections = Gauge(
            "engineroom_connections", "Open connections of clients.", registry=reg
        )
        self.slow_clients = Counter(
            "engineroom_slow_clients_total",
            "Clients that took nothing for write_timeout_s and were cut off.",
            registry=reg,
        )
        self._add_engine_faults()
        self.keys = KeyMetrics(reg)

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

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
