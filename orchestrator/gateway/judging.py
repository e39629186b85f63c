"""Who is to blame for a failed call, whether it is tried again, and what is not tried at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from orchestrator.errors import PoisonRequest, RequestError
from orchestrator.gateway.engine_pool import NotReached
from orchestrator.gateway.orders import Order
from orchestrator.gateway.places import Lease, key_of
from orchestrator.gateway.quarantine import Quarantine
from orchestrator.gateway.retries import (
    RetryBudget,
    counts_as_failure,
    engines_fault,
    may_succeed_elsewhere,
)
from orchestrator.gateway.routing import Router
from orchestrator.gateway.verdicts import Verdict
from orchestrator.observability.metrics import GatewayMetrics

_log = logging.getLogger("engineroom.gateway")


class Judge:
    """Over one router and one quarantine."""

    def __init__(
        self,
        router: Router,
        metrics: GatewayMetrics,
        quarantine: Quarantine,
        report_failure: Callable[[Lease, str], None],
        tell: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        """`tell` passes what was found here to the other workers, which `hear` it."""
        self._router, self._metrics = router, metrics
        self._quarantine, self._report, self._tell = quarantine, report_failure, tell
        self._budget = RetryBudget()

    def asked(self) -> None:
        """A request is about to be tried for the first time."""
        self._budget.asked(time.monotonic())

    def refuse_poison(self, order: Order) -> None:
        """Raise PoisonRequest for a body that ended two engines."""
        if self._quarantine.empty:
            return
        seconds = self._quarantine.refused_for(order.fingerprint, time.monotonic())
        if seconds is not None:
            self._metrics.quarantined.labels(order.route.name).inc()
            raise PoisonRequest(
                "engines crashed twice under this very request; it is refused for another "
                f"{seconds:.0f} s: change the request, or report what it does to the engine"
            )

    def again(self, order: Order, lease: Lease, error: RequestError) -> bool:
        """Whether to try once more: for nothing where nothing was sent, else out of the budget."""
        now = time.monotonic()
        model = order.route.name
        if not isinstance(error, NotReached):
            if not may_succeed_elsewhere(error):
                return False
            if not self._router.has_other(model, lease.replica):
                return False
            if not self._quarantine.may_be_replayed(order.fingerprint, now):
                return False
            if not self._budget.take(now):
                self._metrics.retries_refused.labels(model).inc()
                return False
        self._metrics.retries.labels(model, error.code).inc()
        return True

    def answered(self, order: Order, lease: Lease) -> None:
        """A whole answer speaks for its replica, and for its body."""
        lease.tally.answered += 1
        key = lease.slot.key
        doubted = lease.line.outliers.succeeded(key)
        body: str | None = None
        if not self._quarantine.empty and self._quarantine.answered(order.fingerprint):
            body = order.fingerprint
        if doubted or body is not None:
            self._tell(Verdict(replica=key, failed=False, body=body))

    def hear(self, verdict: Verdict) -> None:
        """What another worker found is as good as found here; it is not told on."""
        key = verdict.replica
        if not verdict.failed:
            self._router.succeeded(key)
            if verdict.body is not None:
                self._quarantine.answered(verdict.body)
            return
        if verdict.broke:
            self._router.broke(key)
        if verdict.body is not None:
            self._quarantine.broke(key, verdict.body, time.monotonic())
        self._router.failed(key)

    def blame(self, lease: Lease, error: RequestError, order: Order | None = None) -> None:
        """Hold an error against the replica, where it is one of the engine's.

        In doubt it rests and is probed; too many failures in a row have it left out for longer.
        `order` is what may have brought it about.
        """
        if not counts_as_failure(error):
            return
        replica, model = lease.replica, lease.route.name
        self._metrics.upstream_errors.labels(model, error.code).inc()
        key, body = key_of(replica), None
        if broke := engines_fault(error):
            self._router.broke(key)
            self._report(lease, error.message)
            if order is not None and not isinstance(error, NotReached):
                body = order.fingerprint
                self._quarantine.broke(key, body, time.monotonic())
        self._tell(Verdict(replica=key, failed=True, broke=broke, body=body))
        if (seconds := self._router.failed(key)) is not None:
            self._metrics.ejections.labels(model).inc()
            told = "replica=%s is left out for %g s: requests fail on it, lastly with %s"
            _log.warning(told, replica.id, seconds, error.code)
