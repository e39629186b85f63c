"""What all requests of one gateway process share, and the clock that looks after them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from orchestrator.gateway.doors import Doors
from orchestrator.gateway.engine_pool import EnginePool
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.judging import Judge
from orchestrator.gateway.keyring import KeyRing
from orchestrator.gateway.request_ids import RequestIds
from orchestrator.gateway.routing import Router
from orchestrator.gateway.solo import SEEN
from orchestrator.gateway.tokens import Tokenizers
from orchestrator.observability.metrics import GatewayMetrics
from orchestrator.observability.plain import Count

_log = logging.getLogger("engineroom.gateway")
_TICK_S = 0.1
_PREFILL_S_PER_TOKEN = 0.2  # slower than any engine worth waiting for
_SWEEP = 10  # ticks between sweeps


class Watched(Protocol):
    """What is looked after while it lasts."""

    def check(self, now: float) -> None:
        """`now` is the loop's clock."""


class Watch:
    """One timer for everything that may take too long.

    A timer of its own would cost every request more than all its looks together.
    """

    def __init__(self, *sweeps: Callable[[], None]) -> None:
        self.all: set[Watched] = set()
        self._sweeps = sweeps
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look around from now on."""
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_TICK_S, self._tick)
        now = loop.time()
        for each in list(self.all):
            try:
                each.check(now)
            except Exception:  # noqa: BLE001 - one that breaks must not cost the others their look
                _log.exception("a look at %r failed", each)
                self.all.discard(each)
        self._ticks += 1
        if self._ticks % _SWEEP == 0:
            for sweep in self._sweeps:
                sweep()


class Page:
    """The series of one model and one path, looked up once."""

    __slots__ = (
        "_codes", "_key", "_metrics", "_read", "_spaced", "_written", "first_token", "lasted",
        "waited",
    )  # fmt: skip

    def __init__(self, metrics: GatewayMetrics, model: str, path: str) -> None:
        self._metrics, self._key = metrics, (model, path)
        self._codes: dict[str, Count] = {}
        self.lasted = metrics.seconds.labels(model, path).observe
        self.first_token = metrics.ttft.labels(model).observe
        self.waited = metrics.queue.labels(model).observe
        self._written = metrics.tokens.labels(model)
        self._read = metrics.prompt_tokens.labels(model)
        self._spaced = metrics.itl.labels(model).observe

    def answered(self, code: str) -> None:
        """Count a request by its status."""
        if (count := self._codes.get(code)) is None:
            count = self._codes[code] = self._metrics.requests.labels(*self._key, code)
        count.value += 1

    def used(self, prompt: int, tokens: int) -> None:
        """Count what an engine read and wrote."""
        self._read.value += prompt
        self._written.value += tokens

    def spaced(self, pieces: int, tokens: int, seconds: float) -> None:
        """How far apart tokens came that took so long after the first.

        Nothing is said where few were seen to come: thoughts and calls of tools are no text.
        """
        if tokens > 1 and pieces >= SEEN * tokens:
            self._spaced(seconds / (tokens - 1))


@dataclass(eq=False)
class Desk:
    """See the module. Times in seconds, sizes in bytes; `comment_s` 0: no comments."""

    router: Router
    pool: EnginePool
    tokenizers: Tokenizers
    judge: Judge
    metrics: GatewayMetrics
    watch: Watch
    entry: Entry
    keys: KeyRing
    doors: Doors
    stall_timeout_s: float
    max_body_bytes: int
    ids: RequestIds
    comment_s: float
    head_s: float
    body_s: float

    def __post_init__(self) -> None:
        self.page = lru_cache(maxsize=1024)(self._page)

    def patience(self, prompt: int) -> float:
        """Seconds that the first word of an answer may take after a prompt of so many tokens."""
        return self.stall_timeout_s + prompt * _PREFILL_S_PER_TOKEN

    def _page(self, model: str, path: str) -> Page:
        return Page(self.metrics, model, path)
