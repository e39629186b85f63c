"""The gateway's series of API keys. `key` is the name of a key that exists, never the key."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from orchestrator.observability.plain import Count, PlainCounter

REASONS = (
    "api_key_expired", "model_not_found", "concurrent_requests", "requests_per_minute",
    "tokens_per_minute",
)  # fmt: skip
DIRECTIONS = ("prompt", "completion")


class KeyMetrics:
    """Usage by key. The series of a key come with it and go with it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = PlainCounter(
            "engineroom_key_requests_total",
            "Requests by the name of their API key; `settings` are those of `api_keys`, `-` is "
            "everybody where no key is asked for.",
            ["key"],
            registry=registry,
        )
        self._tokens = PlainCounter(
            "engineroom_key_tokens_total",
            "Tokens read (prompt) and written (completion) for a key.",
            ["key", "direction"],
            registry=registry,
        )
        self._refused = PlainCounter(
            "engineroom_key_refused_total",
            "Requests refused for a limit of their key, by error code.",
            ["key", "reason"],
            registry=registry,
        )
        self._known: dict[str, tuple[Count, Count, Count]] = {}
        """By key: its requests, tokens of prompts, tokens of answers."""

    def known(self, keys: Iterable[str]) -> None:
        """Create the series of new keys, remove those of old ones."""
        now = set(keys)
        for key in self._known.keys() - now:
            self._requests.remove(key)
            for direction in DIRECTIONS:
                self._tokens.remove(key, direction)
            for reason in REASONS:
                self._refused.remove(key, reason)
            del self._known[key]
        for key in now - self._known.keys():
            prompt, completion = (self._tokens.labels(key, each) for each in DIRECTIONS)
            self._known[key] = (self._requests.labels(key), prompt, completion)
            for reason in REASONS:
                self._refused.labels(key, reason)

    def asked(self, key: str) -> None:
        """A request of the key arrived."""
        if (series := self._known.get(key)) is not None:
            series[0].value += 1

    def refused(self, key: str, reason: str) -> None:
        """It was refused for one of the key's limits."""
        if key in self._known and reason in REASONS:
            self._refused.labels(key, reason).inc()

    def used(self, key: str, prompt: int, completion: int) -> None:
        """What an engine read and wrote for it; a key that was revoked meanwhile has no series."""
        if (series := self._known.get(key)) is not None:
            series[1].value += prompt
            series[2].value += completion
