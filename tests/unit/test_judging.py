"""Two workers of one gateway judge as one: what either finds counts for both."""

from __future__ import annotations

import time

import pytest

from engine_launchers.base import CrashCause
from orchestrator.errors import PoisonRequest, UpstreamBroken, UpstreamInvalid
from orchestrator.gateway.judging import Judge
from orchestrator.gateway.orders import COMPLETIONS, Order
from orchestrator.gateway.places import key_of
from orchestrator.gateway.quarantine import Quarantine
from orchestrator.gateway.routing import Router
from orchestrator.gateway.shapes import WholeText
from orchestrator.gateway.verdicts import Verdict
from orchestrator.observability.metrics import GatewayMetrics
from tests.books import desks
from tests.unit.test_routing import replica, table


class Worker:
    """One worker's router, quarantine and judge."""

    def __init__(self, router: Router) -> None:
        self.router, self.quarantine = router, Quarantine()
        self.others: list[Worker] = []
        self.router.apply(table(replica("a"), replica("b")))
        judged = self.router, GatewayMetrics(), self.quarantine
        self.judge = Judge(*judged, lambda lease, why: None, self.tell)

    def tell(self, verdict: Verdict) -> None:
        for other in self.others:
            other.judge.hear(Verdict.model_validate_json(verdict.model_dump_json()))

    def order(self) -> Order:
        return Order(self.router.find("m"), COMPLETIONS, {}, WholeText("m"), b"poison")


def pair(routers: list[Router]) -> tuple[Worker, Worker]:
    one, other = map(Worker, routers)
    one.others, other.others = [other], [one]
    return one, other


async def test_failures_in_a_row_are_counted_over_the_workers_and_one_answer_ends_the_row() -> None:
    now = 0.0
    with desks(2) as made:
        one, other = pair([Router(9, 9.0, clock=lambda: now, books=b) for b in made.books])

        def fail(times: int) -> None:
            nonlocal now
            for number in range(times):
                now += 2.0  # it rests no more
                lease = one.router.take_now("m", avoid=replica("b"))
                assert lease is not None
                (one, other)[number % 2].judge.blame(lease, UpstreamInvalid("nonsense"))
                one.router.release(lease)

        fail(4)
        now += 2.0
        lease = other.router.take_now("m", avoid=replica("b"))
        assert lease is not None
        other.judge.answered(other.order(), lease)
        other.router.release(lease)
        fail(4)
        assert [each.router.ejected("m") for each in (one, other)] == [0, 0]
        fail(1)
        assert [each.router.ejected("m") for each in (one, other)] == [1, 1]


async def test_a_body_that_two_workers_saw_kill_is_refused_by_both() -> None:
    with desks(2) as made:
        one, other = pair([Router(9, 9.0, books=books) for books in made.books])
        for worker, name in ((one, "a"), (other, "b")):
            lease = worker.router.take_now("m", avoid=replica("b" if name == "a" else "a"))
            assert lease is not None
            assert lease.replica.id == name
            for each in (one, other):  # each hears of the crash by the table
                each.quarantine.lost(key_of(lease.replica), CrashCause.UNKNOWN, time.monotonic())
            worker.judge.blame(lease, UpstreamBroken("it is gone"), worker.order())
            worker.router.release(lease)
        for worker in (one, other):
            with pytest.raises(PoisonRequest):
                worker.judge.refuse_poison(worker.order())
