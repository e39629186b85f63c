"""Routers under any order of asking, leaving, breaking, new tables: none lost, none over.

Of one worker or of several that share their books: the limits are the same.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control import Replica
from orchestrator.errors import RequestError
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.places import key_of
from orchestrator.gateway.routing import Router
from tests.books import Desks, desks
from tests.leases import leased
from tests.unit.test_routing import replica, settle, table

NAMES = ("a", "b", "c")
STEP = st.one_of(
    st.tuples(
        st.just("ask"), st.sampled_from("xyz"), st.integers(1, 50), st.integers(-2, 2),
        st.booleans(), st.sampled_from([None, *NAMES]), st.binary(max_size=2),
    ),
    st.tuples(st.sampled_from(["end", "leave", "break", "fail"]), st.integers(0, 99)),
    st.tuples(st.just("table"), st.lists(st.tuples(
        st.sampled_from(NAMES), st.integers(1, 2), st.integers(1, 3), st.booleans()),
        max_size=3, unique_by=lambda each: each[0])),
)  # fmt: skip


class Crowd:
    """Requests of which each is in one state: waiting, holding a place, or over."""

    def __init__(self, desks: Desks) -> None:
        self.now = 0.0
        self.routers = [
            Router(8, 60.0, clock=lambda: self.now, max_queue_tokens=200, books=books)
            for books in desks.books
        ]
        desks.stir = [router.stir for router in self.routers]
        self.tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self.holding: list[str] = []
        self.version = 0
        self.replicas: list[Replica] = []

    async def request(
        self, router: Router, ask: Ask, again: bool, avoid: Replica | None, go: asyncio.Event
    ) -> None:
        async with leased(router, ask, again, avoid) as lease:
            self.holding.append(lease.replica.id)
            try:
                await go.wait()
                lease.tokens = ask.cost // 2
            finally:
                self.holding.remove(lease.replica.id)

    def publish(self, rows: list[Any]) -> None:
        self.version += 1
        self.replicas = [replica(name, gen, yes, places) for name, gen, places, yes in rows]
        for router in self.routers:
            router.apply(table(*self.replicas, version=self.version))

    def step(self, worker: int, what: str, *more: Any) -> None:
        router = self.routers[worker % len(self.routers)]
        if what == "ask":
            key, tokens, priority, again, avoid, affinity = more
            ask = Ask("m", key, tokens, 0, priority, None, affinity)
            bad = next((each for each in self.replicas if each.id == avoid), None)
            go = asyncio.Event()
            task = asyncio.ensure_future(
                self.request(router, ask, again, bad if again else None, go)
            )
            self.tasks.append((task, go))
        elif what == "table":
            self.publish(*more)
        elif what in ("break", "fail") and self.replicas:
            chosen = key_of(self.replicas[more[0] % len(self.replicas)])
            router.broke(chosen) if what == "break" else router.failed(chosen)
        elif self.tasks and what in ("end", "leave"):
            task, go = self.tasks[more[0] % len(self.tasks)]
            go.set() if what == "end" else task.cancel()
        self.now += 0.3

    def check(self) -> None:
        """Nobody waits who could be served, and nothing is over its limit."""
        running = [task for task, _ in self.tasks if not task.done()]
        waiting = sum(router.waiting()["m"] for router in self.routers)
        assert waiting + len(self.holding) == len(running)
        for each in self.replicas:
            known = sum(router.in_flight()[each.id] for router in self.routers)
            assert 0 <= known <= max(each.max_concurrency, self.holding.count(each.id))
        for router in self.routers:
            line = router._lines["m"]
            assert router.model_load("m")[1] == waiting
            if line.queue and not any(entry.item.avoid for entry in line.queue):
                usable = line.slots.keys() - line.barred(None, self.now)
                assert not any(line.slots[key].can_take(self.now) for key in usable)

    def time_goes_by(self) -> None:
        """What the routers' timers do then."""
        for router in self.routers:
            router._wake(router._lines["m"])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 2), STEP, st.booleans()), max_size=60))
def test_nothing_is_lost_and_nobody_waits_in_vain(workers: int, steps: list[Any]) -> None:
    """Without a pause between them steps fall together: a place is granted to one that leaves."""

    async def run(desks: Desks) -> None:
        crowd = Crowd(desks)
        crowd.publish([("a", 1, 1, True), ("b", 1, 2, True)])
        for worker, step, pause in steps:
            crowd.step(worker, *step)
            if not pause:
                continue
            await settle()
            crowd.time_goes_by()
            await settle()
            crowd.check()
        for _, go in crowd.tasks:
            go.set()
        crowd.now += 1000
        crowd.publish([("z", 1, 1, True)])
        await asyncio.wait_for(
            asyncio.gather(*(task for task, _ in crowd.tasks), return_exceptions=True), 20
        )
        for task, _ in crowd.tasks:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, RequestError)
        assert crowd.holding == []
        for router in crowd.routers:
            assert router.in_flight() == {"z": 0}
            assert router.model_load("m") == (0, 0)

    with desks(workers) as made:
        asyncio.run(run(made))
