"""Leases: order of arrival, bounds, deadlines, and nothing ever lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from engine_launchers.base import CrashCause, Quirks, Served
from orchestrator.control import ModelRoute, Replica, RouteTable
from orchestrator.errors import BadRequest, Draining, ModelUnavailable, QueueFull, UnknownModel
from orchestrator.gateway.places import key_of
from orchestrator.gateway.routing import Router
from tests.leases import leased


def table(
    *replicas: Replica, version: int = 1, draining: bool = False, expected: bool = True
) -> RouteTable:
    route = ModelRoute(
        name="m",
        state="ready",
        why="because",
        expected=expected,
        engine="fake",
        context=100,
        created=0,
        routes=frozenset(),
        quirks=Quirks(),
        replicas=replicas,
    )
    return RouteTable(version=version, draining=draining, models=(route,))


def replica(
    id: str = "m-0", generation: int = 1, accepting: bool = True, places: int = 1
) -> Replica:
    return Replica(
        id=id,
        generation=generation,
        base_url="http://x",
        accepting=accepting,
        max_concurrency=places,
    )


def router(*replicas: Replica, max_queue: int = 100, timeout: float = 5.0) -> Router:
    made = Router(max_queue, timeout)
    made.apply(table(*replicas))
    return made


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_at_a_time_in_order_of_arrival() -> None:
    made, order, running = router(replica()), [], 0

    async def request(number: int) -> None:
        nonlocal running
        async with leased(made, "m"):
            running += 1
            assert running == 1
            order.append(number)
            await settle()
            running -= 1

    await asyncio.gather(*(request(n) for n in range(50)))
    assert order == list(range(50))
    assert made.in_flight() == {"m-0": 0}


async def test_the_least_loaded_replica_is_chosen() -> None:
    made = router(replica("a", places=4), replica("b", places=4))
    async with AsyncExitStack() as stack:
        chosen = [(await stack.enter_async_context(leased(made, "m"))).replica.id for _ in range(8)]
    assert sorted(chosen) == ["a"] * 4 + ["b"] * 4
    assert chosen[:2] in (["a", "b"], ["b", "a"])


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    made = router(replica(), max_queue=2)
    async with leased(made, "m"):
        waiting = [asyncio.create_task(enter(made)) for _ in range(2)]
        await settle()
        with pytest.raises(QueueFull) as caught:
            await enter(made)
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= 1
    await asyncio.gather(*waiting)


async def enter(made: Router) -> str:
    async with leased(made, "m") as lease:
        return lease.replica.id


async def test_waiting_ends_at_the_deadline_and_leaves_no_trace() -> None:
    made = router(replica(accepting=False), timeout=0.01)
    with pytest.raises(ModelUnavailable, match="because"):
        await enter(made)
    assert made.waiting() == {"m": 0}


async def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    made = router(replica())
    async with leased(made, "m"):
        waiting = asyncio.create_task(enter(made))
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert made.waiting() == {"m": 0}
    assert await enter(made) == "m-0"


async def test_a_place_granted_to_one_that_leaves_at_that_moment_is_given_back() -> None:
    made = router(replica())
    stack = AsyncExitStack()
    await stack.enter_async_context(leased(made, "m"))
    first, second = (asyncio.create_task(enter(made)) for _ in range(2))
    await settle()
    await stack.aclose()  # grants the place to `first`, which has not run yet
    first.cancel()
    assert await asyncio.wait_for(second, 10) == "m-0"
    assert made.in_flight() == {"m-0": 0}


async def test_requests_wait_for_a_model_that_is_starting_and_are_served_by_the_new_table() -> None:
    made = router()
    waiting = asyncio.create_task(enter(made))
    await settle()
    made.apply(table(replica(generation=2), version=2))
    assert await waiting == "m-0"


async def test_waiters_are_told_when_waiting_becomes_vain() -> None:
    made = router(replica(accepting=False))
    waiting = asyncio.create_task(enter(made))
    await settle()
    made.apply(table(version=2, expected=False))
    with pytest.raises(ModelUnavailable):
        await waiting


async def test_a_draining_gateway_takes_nothing_new_and_lets_the_rest_finish() -> None:
    made = router(replica())
    async with leased(made, "m"):
        waiting = asyncio.create_task(enter(made))
        await settle()
        made.apply(table(replica(accepting=False), version=2, draining=True))
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await enter(made)
        assert made.in_flight() == {"m-0": 1}
    assert made.in_flight() == {"m-0": 0}


async def test_a_broken_replica_rests_until_a_new_table_vouches_for_it() -> None:
    broken = replica()
    made = router(broken)
    made.broke(key_of(broken))
    waiting = asyncio.create_task(enter(made))
    await settle()
    assert not waiting.done()
    made.apply(table(broken, version=2))
    assert await waiting == "m-0"


async def test_without_a_new_table_a_broken_replica_is_tried_again_by_itself() -> None:
    broken = replica()
    made = router(broken)
    made.broke(key_of(broken))
    assert await asyncio.wait_for(enter(made), 10) == "m-0"


async def test_a_timer_that_fires_before_our_clock_agrees_wakes_nobody_too_early_or_never() -> None:
    """uvloop's timers are coarser than the clock; a lagging clock stands for that."""
    lag = 0.0
    made = Router(10, 5.0, clock=lambda: time.monotonic() - lag)
    broken = replica()
    made.apply(table(broken))
    made.broke(key_of(broken))
    lag = 0.05
    assert await asyncio.wait_for(enter(made), 10) == "m-0"


async def test_one_that_gives_up_waiting_does_not_leave_the_rest_standing() -> None:
    broken = replica()
    made = Router(10, 0.05)
    made.apply(table(broken))
    made.broke(key_of(broken))
    with pytest.raises(ModelUnavailable):
        await enter(made)
    patient = Router(10, 5.0)
    patient.apply(table(broken))
    patient.broke(key_of(broken))
    both = await asyncio.wait_for(asyncio.gather(enter(patient), enter(patient)), 10)
    assert list(both) == ["m-0", "m-0"]


async def test_a_request_that_lost_its_place_comes_first_and_is_never_refused() -> None:
    made, order = router(replica(), max_queue=1), []

    async def late(name: str, again: bool) -> None:
        async with leased(made, "m", again):
            order.append(name)

    async with leased(made, "m"):
        tasks = [asyncio.create_task(late("new", again=False))]
        await settle()
        tasks.append(asyncio.create_task(late("again", again=True)))
        await settle()
    await asyncio.gather(*tasks)
    assert order == ["again", "new"]


async def test_a_lease_survives_the_replacement_of_its_replica() -> None:
    made = router(replica(generation=1))
    async with leased(made, "m"):
        made.apply(table(replica(generation=2), version=2))
        assert await enter(made) == "m-0"
    assert made.in_flight() == {"m-0": 0}


async def test_aliases_and_adapters_lease_the_same_replica() -> None:
    made = router(replica())
    route = table(replica()).models[0]
    tuned = Served(name="tuned", model="m", fields={"lora": [{"id": 0, "scale": 1.0}]}, adapter="t")
    names = (Served(name="m", model="m"), Served(name="alias", model="m"), tuned)
    changed = route.model_copy(update={"served": names})
    made.apply(table(replica()).model_copy(update={"models": (changed,)}))
    assert made.find("alias").call == {"model": "m"}
    assert made.find("tuned").call == {"model": "m", "lora": [{"id": 0, "scale": 1.0}]}
    assert [each.served.name for each in made.targets()] == ["m", "alias", "tuned"]
    async with leased(made, "tuned") as lease:
        assert (lease.route.name, made.in_flight()) == ("m", {"m-0": 1})


async def test_names() -> None:
    made = router(replica())
    assert made.find(None).route.name == "m"
    with pytest.raises(UnknownModel):
        made.find("../../etc/passwd")
    two = table(replica())
    other = two.models[0].model_copy(update={"name": "n"})
    made.apply(two.model_copy(update={"models": (two.models[0], other)}))
    with pytest.raises(BadRequest, match="name a model"):
        made.find(None)
    with pytest.raises(ModelUnavailable):
        Router(1, 1).find("m")


async def test_one_that_failed_on_a_replica_gets_another_even_if_it_has_to_wait() -> None:
    made = router(replica("a"), replica("b"))
    got: list[str] = []

    async def again() -> None:
        async with leased(made, "m", again=True, avoid=replica("a")) as lease:
            got.append(lease.replica.id)

    async with AsyncExitStack() as stack:
        first = [await stack.enter_async_context(leased(made, "m")) for _ in range(2)]
        assert [each.replica.id for each in first] == ["a", "b"]
        waiting = asyncio.create_task(again())
        behind = asyncio.create_task(enter(made))
        await settle()
        made.apply(table(replica("a", places=2), replica("b"), version=2))
        await settle()
        assert (got, behind.result()) == ([], "a")  # who may have the place is let past
    await waiting
    assert got == ["b"]
    made.apply(table(replica("a"), version=3))
    assert not made.has_other("m", replica("a"))
    await again()
    assert got == ["b", "a"]  # better than none


async def test_a_replica_that_keeps_failing_is_left_out_until_its_time_is_over() -> None:
    now = 0.0
    made = Router(100, 5.0, clock=lambda: now)
    made.apply(table(replica("a", places=2), replica("b")))
    assert [made.failed(key_of(replica("a"))) for _ in range(5)] == [None] * 4 + [30.0]
    assert (made.ejected("m"), made.ready("m")) == (1, True)
    async with leased(made, "m") as lease:
        assert lease.replica.id == "b"
        waiting = asyncio.create_task(enter(made))
        await settle()
        assert not waiting.done()
        now = 31.0
        made.apply(table(replica("a", places=2), replica("b"), version=2))
        assert await waiting == "a"


def test_the_end_of_a_replica_is_told_with_what_is_known_of_it() -> None:
    lost: list[object] = []
    made = Router(1, 1, on_lost=lambda key, cause: lost.append((key, cause)))
    made.apply(table(replica("a"), replica("b"), replica("c", accepting=False)))
    route = table(replica("a", generation=2)).models[0]
    crashed = route.model_copy(update={"lost": {"a": CrashCause.UNKNOWN}})
    made.apply(RouteTable(version=2, models=(crashed,)))
    assert lost == [(("a", 1), CrashCause.UNKNOWN), (("b", 1), None)]


async def test_a_place_is_taken_at_once_only_where_one_is_free_and_nobody_waits() -> None:
    made = router(replica())
    first = made.take_now("m")
    assert first is not None
    assert first.replica.id == "m-0"
    assert made.take_now("m") is None
    waiting = asyncio.create_task(enter(made))
    await settle()
    made.apply(table(replica(places=2), replica("n"), version=2))
    assert await waiting in {"m-0", "n"}
    made.release(first)
    assert made.in_flight() == {"m-0": 0, "n": 0}
    second = made.take_now("m", avoid=replica())
    assert second is not None
    assert second.replica.id == "n"
    made.release(second)
    made.apply(table(version=3, expected=False))
    with pytest.raises(ModelUnavailable):
        made.take_now("m")


async def test_a_rest_that_ends_between_two_looks_at_the_clock_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock goes on while it is read: just before the end, then just after it."""
    times, loop = [0.0], asyncio.get_running_loop()
    later = loop.call_later
    made = Router(10, 5.0, clock=lambda: times.pop(0) if len(times) > 1 else times[0])

    def fires_early(seconds: float, wake: Callable[..., object], *given: object) -> object:
        def fire() -> None:
            times[:] = [0.9999, 1.0001]
            wake(*given)

        return later(seconds, fire)

    made.apply(table(replica()))
    monkeypatch.setattr(loop, "call_later", fires_early)
    made.broke(key_of(replica()))
    monkeypatch.setattr(loop, "call_later", later)
    waits = asyncio.create_task(enter(made))
    await settle()
    assert made.waiting() == {"m": 1}
    assert await asyncio.wait_for(waits, 10) == "m-0"
