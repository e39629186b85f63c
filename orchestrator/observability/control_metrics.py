"""The control plane's Prometheus series, with those of `machine_metrics` and `engine_metrics`.

One word has one meaning: `model` is what clients ask for, `engine` the program that serves it
("vllm"), `replica` one process of it ("demo-0"; also "gateway-0"). Labels come from closed sets;
series of a replica are created when it becomes known, not at its first trouble.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from prometheus_client import Counter, Gauge, Histogram, generate_latest

from engine_launchers.base import CrashCause
from orchestrator import __version__
from orchestrator.observability.engine_metrics import EngineMetrics
from orchestrator.observability.machine_metrics import MachineMetrics
from orchestrator.observability.plain import own_registry

_LONG = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
EVICTIONS = ("idle", "asleep", "room")
SCRAPES = ("ok", "failed", "slow", "too_large")
STALLS = ("start", "wake", "probes", "requests", "work")


class ControlMetrics:
    """Series of the supervisor."""

    def __init__(self) -> None:
        self.registry = own_registry()
        reg = self.registry
        info = Gauge("engineroom_build_info", "Version that runs.", ["version"], registry=reg)
        info.labels(__version__).set(1)
        self._state = Gauge(
            "engineroom_engine_state",
            "1 for the lifecycle state an engine is in, 0 for the others.",
            ["replica", "state"],
            registry=reg,
        )
        self._transitions = Counter(
            "engineroom_engine_transitions_total",
            "Lifecycle transitions.",
            ["replica", "old", "new"],
            registry=reg,
        )
        self._restarts = Counter(
            "engineroom_engine_restarts_total",
            "Restarts that nobody asked for, by the cause of the exit before.",
            ["replica", "cause"],
            registry=reg,
        )
        self._stalls = Counter(
            "engineroom_engine_stalls_total",
            "Times that it was found to hang: start (does not get ready), wake, probes (does not "
            "answer), requests (breaks every one), work (does not get on with it).",
            ["replica", "kind"],
            registry=reg,
        )
        self._start = Histogram(
            "engineroom_engine_start_seconds",
            "From launch to ready.",
            ["replica"],
            buckets=_LONG,
            registry=reg,
        )
        self._starts = Counter(
            "engineroom_engine_starts_total",
            "Processes that were launched, whatever became of them.",
            ["replica"],
            registry=reg,
        )
        self._load = Counter(
            "engineroom_engine_load_seconds_total",
            "Time of starts that became ready, by phase as the engine's log tells it.",
            ["replica", "phase"],
            registry=reg,
        )
        self._evictions = Counter(
            "engineroom_model_evictions_total",
            "Models that were made to leave: idle (nobody used it), asleep (the same, put to "
            "sleep), room (another one needed its place).",
            ["model", "reason"],
            registry=reg,
        )
        self._scrapes = Counter(
            "engineroom_engine_scrapes_total",
            "Looks at an engine's own metrics: ok, failed, slow (no answer in time), too_large.",
            ["replica", "result"],
            registry=reg,
        )
        self._rung = Gauge(
            "engineroom_plan_rung",
            "How often the plan was made smaller after a failure.",
            ["replica"],
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
        self.machine, self.engines = MachineMetrics(reg), EngineMetrics(reg)

    def add_model(self, model: str) -> None:
        """Create the series of a new model."""
        for reason in EVICTIONS:
            self._evictions.labels(model, reason)

    def add_engine(
        self,
        engine: str,
        states: Iterable[str],
        transitions: Iterable[tuple[str, str]],
        phases: Collection[str] = (),
    ) -> None:
        """Create the series of a new engine or gateway; only engines have `phases` of a start."""
        for old, new in transitions:
            self._transitions.labels(engine, old, new)
        self._starts.labels(engine)
        for phase in phases:
            self._load.labels(engine, phase)
        for result in SCRAPES if phases else ():
            self._scrapes.labels(engine, result)
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

    def launched(self, engine: str) -> None:
        """Count a start."""
        self._starts.labels(engine).inc()

    def started(self, engine: str, seconds: float, phases: Mapping[str, float]) -> None:
        """Observe the time from launch to ready, and how it was spent."""
        self._start.labels(engine).observe(seconds)
        for phase, spent in phases.items():
            self._load.labels(engine, phase).inc(spent)

    def evicted(self, model: str, reason: str) -> None:
        """Count a model that is made to leave."""
        self._evictions.labels(model, reason).inc()

    def scraped(self, engine: str, result: str) -> None:
        """Count a look at an engine's metrics."""
        self._scrapes.labels(engine, result).inc()

    def relaxed(self, engine: str, rung: int) -> None:
        """Remember the rung of the plan in use."""
        self._rung.labels(engine).set(rung)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
