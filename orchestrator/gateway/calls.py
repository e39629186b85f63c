"""One engine call for one request: lease, call, perhaps once more elsewhere, and who is to blame.

A call counts as begun with the engine's first event. Before that nothing has reached the client,
so a failure may be tried again; after it nothing is repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import PoisonRequest, RequestError
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.places import Lease, key_of
from orchestrator.gateway.quarantine import Quarantine
from orchestrator.gateway.retries import (
    RetryBudget,
    counts_as_failure,
    engines_fault,
    may_succeed_elsewhere,
)
from orchestrator.gateway.routing import Router
from orchestrator.gateway.upstream import EngineStream, NotReached, Upstream
from orchestrator.observability.metrics import GatewayMetrics

_log = logging.getLogger("engineroom.gateway")
_TRIES = 2


@dataclass(frozen=True)
class Order:
    """What an engine shall be asked: the model's name, the path, the body, the client's body by its
    hash, and what queue and routing have to know."""

    model: str
    path: str
    body: dict[str, Any]
    fingerprint: str
    ask: Ask


@dataclass(frozen=True)
class Call:
    """One running engine call: its lease, its stream, and the prompt's length."""

    lease: Lease
    stream: EngineStream
    prompt_tokens: int
    began: float


class Caller:
    """Makes the calls, over one router and one upstream."""

    def __init__(
        self,
        router: Router,
        upstream: Upstream,
        metrics: GatewayMetrics,
        quarantine: Quarantine,
        report_failure: Callable[[Lease, str], None],
    ) -> None:
        self._router, self._upstream, self._metrics = router, upstream, metrics
        self._quarantine, self._report = quarantine, report_failure
        self._budget = RetryBudget()

    @asynccontextmanager
    async def call(self, order: Order) -> AsyncIterator[Call]:
        """A call whose answer has begun. Leaving the context frees the engine.

        Raises what kept it from beginning, of the last engine that was tried.
        """
        self._upstream.refuse_hopeless(self._router.find(order.model).route, order.body)
        self._budget.asked(time.monotonic())
        avoid = None
        for attempt in range(1, _TRIES + 1):
            async with AsyncExitStack() as stack:
                self._refuse_poison(order)
                leased = self._router.lease(order.ask, attempt > 1, avoid)
                lease = await stack.enter_async_context(leased)
                self._refuse_poison(order)  # while this one waited another may have shown it
                self._metrics.queue.labels(order.model).observe(lease.waited_s)
                try:
                    call = await self._begin(order, lease, stack)
                except RequestError as error:
                    self.blame(lease, error, order.fingerprint)
                    if attempt == _TRIES or not self._again(order, lease, error):
                        raise
                    self._metrics.retries.labels(order.model, error.code).inc()
                    avoid = lease.replica
                    continue
                with self._blaming(lease, order.fingerprint):
                    yield call
                return

    async def _begin(self, order: Order, lease: Lease, stack: AsyncExitStack) -> Call:
        began = time.monotonic()
        with lease.tally.owing():
            tokens = await self._upstream.prompt_tokens(lease.route, lease.replica, order.body)
        most = tokens or self._upstream.most_tokens(lease.route, order.body)
        opening = self._upstream.stream(lease, order.path, order.body, most)
        return Call(lease, await stack.enter_async_context(opening), tokens, began)

    def _again(self, order: Order, lease: Lease, error: RequestError) -> bool:
        """Whether to try once more: for nothing where nothing was sent, else out of the budget."""
        now = time.monotonic()
        if isinstance(error, NotReached):
            return True
        if not may_succeed_elsewhere(error):
            return False
        if not self._router.has_other(order.model, lease.replica):
            return False
        if not self._quarantine.may_be_replayed(order.fingerprint, now):
            return False
        if not self._budget.take(now):
            self._metrics.retries_refused.labels(order.model).inc()
            return False
        return True

    def _refuse_poison(self, order: Order) -> None:
        seconds = self._quarantine.refused_for(order.fingerprint, time.monotonic())
        if seconds is not None:
            self._metrics.quarantined.labels(order.model).inc()
            raise PoisonRequest(
                "engines crashed twice under this very request; it is refused for another "
                f"{seconds:.0f} s: change the request, or report what it does to the engine"
            )

    @contextmanager
    def _blaming(self, lease: Lease, fingerprint: str) -> Iterator[None]:
        """Whatever breaks in the engine is held against its replica; an answer speaks for it."""
        try:
            yield
        except RequestError as error:
            self.blame(lease, error, fingerprint)
            raise
        lease.tally.answered += 1
        self._router.succeeded(lease.replica)
        self._quarantine.answered(fingerprint)

    def blame(self, lease: Lease, error: RequestError, fingerprint: str | None = None) -> None:
        """Hold an error against the replica, where it is one of the engine's.

        In doubt it rests and is probed; too many failures in a row have it left out for longer.
        `fingerprint` is the body that may have brought it about.
        """
        if not counts_as_failure(error):
            return
        replica, model = lease.replica, lease.route.name
        self._metrics.upstream_errors.labels(model, error.code).inc()
        if engines_fault(error):
            self._router.broke(replica)
            self._report(lease, error.message)
            if fingerprint is not None and not isinstance(error, NotReached):
                self._quarantine.broke(key_of(replica), fingerprint, time.monotonic())
        if (seconds := self._router.failed(replica)) is not None:
            self._metrics.ejections.labels(model).inc()
            told = "replica=%s is left out for %g s: requests fail on it, lastly with %s"
            _log.warning(told, replica.id, seconds, error.code)
