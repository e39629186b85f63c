"""The router under any order of asking, leaving, breaking, new tables: none lost, none over."""

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

    def __init__(self) -> None:
        self.now = 0.0
        self.router = Router(8, 60.0, clock=lambda: self.now, max_queue_tokens=200)
        self.tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self.holding: list[str] = []
        self.version = 0
        self.replicas: list[Replica] = []

    async def request(
        self, ask: Ask, again: bool, avoid: Replica | None, go: asyncio.Event
    ) -> None:
        async with self.router.lease(ask, again, avoid) as lease:
            self.holding.append(lease.replica.id)
            try:
                await go.wait()
                lease.tokens = ask.cost // 2
            finally:
                self.holding.remove(lease.replica.id)

    def publish(self, rows: list[Any]) -> None:
        self.version += 1
        self.replicas = [replica(name, gen, yes, places) for name, gen, places, yes in rows]
        self.router.apply(table(*self.replicas, version=self.version))

    def step(self, what: str, *more: Any) -> None:
        if what == "ask":
            key, tokens, priority, again, avoid, affinity = more
            ask = Ask("m", key, tokens, 0, priority, None, affinity)
            bad = next((each for each in self.replicas if each.id == avoid), None)
            go = asyncio.Event()
            task = asyncio.ensure_future(self.request(ask, again, bad if again else None, go))
            self.tasks.append((task, go))
        elif what == "table":
            self.publish(*more)
        elif what in ("break", "fail") and self.replicas:
            chosen = key_of(self.replicas[more[0] % len(self.replicas)])
            self.router.broke(chosen) if what == "break" else self.router.failed(chosen)
        elif self.tasks and what in ("end", "leave"):
            task, go = self.tasks[more[0] % len(self.tasks)]
            go.set() if what == "end" else task.cancel()
        self.now += 0.3

    def check(self) -> None:
        """Nobody waits who could be served, and nothing is over its limit."""
        running = [task for task, _ in self.tasks if not task.done()]
        waiting = self.router.waiting()["m"]
        assert waiting + len(self.holding) == len(running)
        known = self.router.in_flight()
        for each in self.replicas:
            assert 0 <= known[each.id] <= max(each.max_concurrency, self.holding.count(each.id))
        line = self.router._lines["m"]
        if waiting and not any(entry.item.avoid for entry in line.queue):
            assert not any(slot.can_take(self.now) for slot in line.order if self._usable(slot))

    def _usable(self, slot: Any) -> bool:
        line = self.router._lines["m"]
        return (slot.replica.id, slot.replica.generation) not in line.barred(None, self.now)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(STEP, st.booleans()), max_size=60))
def test_nothing_is_lost_and_nobody_waits_in_vain(steps: list[Any]) -> None:
    """Without a pause between them steps fall together: a place is granted to one that leaves."""

    async def run() -> None:
        crowd = Crowd()
        crowd.publish([("a", 1, 1, True), ("b", 1, 2, True)])
        for step, pause in steps:
            crowd.step(*step)
            if not pause:
                continue
            await settle()
            crowd.router._wake(crowd.router._lines["m"])  # what its timers do as time goes by
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
        assert crowd.router.in_flight() == {"z": 0}
        assert crowd.router.waiting() == {"m": 0}

    asyncio.run(run())
