"""What the server counts, as Prometheus text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class _Iterations(Collector):
    """A counter that the loop's thread keeps."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read

    def collect(self) -> list[CounterMetricFamily]:
        """One sample."""
        family = CounterMetricFamily(
            "pytorch_engine_iterations", "Steps of the batching loop; stands still when it hangs"
        )
        family.add_metric([], self._read())
        return [family]


class Metrics:
    """The series of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.prompt_tokens = Counter(
            "pytorch_engine_prompt_tokens", "Tokens of admitted prompts", registry=own
        )
        self.generation_tokens = Counter(
            "pytorch_engine_generation_tokens", "Tokens generated", registry=own
        )
        self.finished = Counter(
            "pytorch_engine_requests_finished",
            "Requests ended, by how: stop, length, cancelled, failed",
            ["reason"],
            registry=own,
        )
        self.first_token = Histogram(
            "pytorch_engine_time_to_first_token_seconds",
            "From arrival to the first token",
            buckets=_TTFT,
            registry=own,
        )

    def watch(
        self,
        running: Callable[[], int],
        waiting: Callable[[], int],
        used: Callable[[], int],
        iterations: Callable[[], int],
        blocks: int,
    ) -> None:
        """Gauges that are read when somebody asks."""
        for name, words, read in (
            ("requests_running", "Requests in the batch", running),
            ("requests_waiting", "Requests that wait for a place", waiting),
            ("kv_blocks_used", "KV blocks that are not free", used),
            ("kv_blocks", "KV blocks in all", lambda: blocks),
        ):
            gauge = Gauge(f"pytorch_engine_{name}", words, registry=self._registry)
            gauge.set_function(read)
        self._registry.register(_Iterations(iterations))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
