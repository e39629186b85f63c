"""The gateway's series of API keys. `key` is the name of a key that exists, never the key."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

REASONS = (
    "api_key_expired", "model_not_found", "concurrent_requests", "requests_per_minute",
    "tokens_per_minute",
)  # fmt: skip
DIRECTIONS = ("prompt", "completion")


class KeyMetrics:
    """Usage by key. The series of a key come with it and go with it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "engineroom_key_requests_total",
            "Requests by the name of their API key; `settings` are those of `api_keys`, `-` is "
            "everybody where no key is asked for.",
            ["key"],
            registry=registry,
        )
        self._tokens = Counter(
            "engineroom_key_tokens_total",
            "Tokens read (prompt) and written (completion) for a key.",
            ["key", "direction"],
            registry=registry,
        )
        self._refused = Counter(
            "engineroom_key_refused_total",
            "Requests refused for a limit of their key, by error code.",
            ["key", "reason"],
            registry=registry,
        )
        self._known: set[str] = set()

    def known(self, keys: Iterable[str]) -> None:
        """Create the series of new keys, remove those of old ones."""
        now = set(keys)
        for key in self._known - now:
            self._requests.remove(key)
            for direction in DIRECTIONS:
                self._tokens.remove(key, direction)
            for reason in REASONS:
                self._refused.remove(key, reason)
        for key in now - self._known:
            self._requests.labels(key)
            for direction in DIRECTIONS:
                self._tokens.labels(key, direction)
            for reason in REASONS:
                self._refused.labels(key, reason)
        self._known = now

    def asked(self, key: str) -> None:
        """A request of the key arrived."""
        if key in self._known:
            self._requests.labels(key).inc()

    def refused(self, key: str, reason: str) -> None:
        """It was refused for one of the key's limits."""
        if key in self._known and reason in REASONS:
            self._refused.labels(key, reason).inc()

    def used(self, key: str, prompt: int, completion: int) -> None:
        """What an engine read and wrote for it; a key that was revoked meanwhile has no series."""
        if key in self._known:
            self._tokens.labels(key, "prompt").inc(prompt)
            self._tokens.labels(key, "completion").inc(completion)
