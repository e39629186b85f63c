"""The books of several workers: what each counts, whose turn it is, and what a dead one leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.access import KeyGrant, hash_of
from orchestrator.errors import QueueFull, TooManyAtOnce, TooManyRequests, TooManyTokens
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.books import FIRST, NOBODY, Head, whose_turn
from orchestrator.gateway.keyring import KeyRing, Permit
from orchestrator.gateway.routing import Router
from orchestrator.gateway.workers import memory as memory_module
from orchestrator.gateway.workers.memory import Memory, Row, make
from tests.books import Desks, desks
from tests.harness import ROOT
from tests.leases import leased
from tests.unit.test_fairness import hold
from tests.unit.test_keys import Counted
from tests.unit.test_routing import replica, settle, table


@pytest.fixture
def two() -> Iterator[Desks]:
    with desks(2) as made:
        yield made


def routers(
    desks: Desks, places: int = 1, max_queue: int = 100, tokens: int = 1 << 30
) -> list[Router]:
    made = [Router(max_queue, 60.0, max_queue_tokens=tokens, books=books) for books in desks.books]
    desks.stir = [each.stir for each in made]
    for each in made:
        each.apply(table(replica()))
    return made


# --- whose turn -----------------------------------------------------------------------------------

HEAD = st.one_of(
    st.just(NOBODY),
    st.just(FIRST),
    st.builds(Head, st.floats(0, 9), st.integers(-2, 2), st.floats(0, 99), st.booleans()),
)


@given(st.lists(HEAD, max_size=6))
def test_the_turn_is_somebodys_who_waits_and_can_be_served(heads: list[Head]) -> None:
    index = whose_turn(heads)
    able = [head for head in heads if head.order < inf and not head.blocked]
    assert (index is None) == (not able)
    if index is not None:
        chosen = heads[index]
        assert chosen in able
        soonest = min(able, key=lambda head: head.order)
        assert chosen.priority == soonest.priority
        rivals = [head.tag for head in able if head.priority == chosen.priority]
        assert chosen.tag == min(rivals)


async def test_two_keys_share_one_place_though_each_waits_in_a_worker_of_its_own(
    two: Desks,
) -> None:
    (one, other), order = routers(two), list[str]()
    async with leased(one, "m"):
        greedy = [Ask("m", "greedy", new_tokens=10)] * 30
        few = [Ask("m", "other", new_tokens=10)] * 10
        tasks = [asyncio.create_task(hold(one, ask, order)) for ask in greedy]
        await settle()
        tasks += [asyncio.create_task(hold(other, ask, order)) for ask in few]
        await settle()
    await asyncio.gather(*tasks)
    assert abs(order[:20].count("other") - 10) <= 1


async def test_a_key_that_waits_in_two_workers_has_no_two_shares(two: Desks) -> None:
    (one, other), order = routers(two), list[str]()
    async with leased(one, "m"):
        ask, few = Ask("m", "greedy", new_tokens=10), Ask("m", "other", new_tokens=10)
        tasks = [asyncio.create_task(hold(x, ask, order)) for x in (one, other) for _ in range(20)]
        tasks += [asyncio.create_task(hold(other, few, order)) for _ in range(10)]
        await settle()
    await asyncio.gather(*tasks)
    assert abs(order[:20].count("other") - 10) <= 1


async def test_who_comes_later_to_another_worker_does_not_overtake(two: Desks) -> None:
    (one, other), order = routers(two), list[str]()
    async with leased(one, "m"):
        first = asyncio.create_task(hold(one, Ask("m", "first"), order))
        await settle()
        assert other.take_now("m") is None
        second = asyncio.create_task(hold(other, Ask("m", "second"), order))
        await settle()
    await asyncio.gather(first, second)
    assert order == ["first", "second"]


async def test_a_full_queue_is_full_for_all_and_the_greedy_leave_it_wherever_they_wait(
    two: Desks,
) -> None:
    one, other = routers(two, max_queue=4)
    order: list[str] = []
    async with leased(one, "m"):
        greedy = [asyncio.create_task(hold(one, Ask("m", "greedy"), order)) for _ in range(4)]
        await settle()
        assert other.model_load("m") == (1, 4)
        with pytest.raises(QueueFull, match="4 requests"):
            await hold(other, Ask("m", "greedy"), order)
        modest = asyncio.create_task(hold(other, Ask("m", "modest"), order))
        await settle()
        assert other.model_load("m") == (1, 4)
        assert [each.done() for each in greedy].count(True) == 1
    ended = await asyncio.gather(*greedy, modest, return_exceptions=True)
    assert [type(each) for each in ended if each is not None] == [QueueFull]
    assert Counter(order) == {"greedy": 3, "modest": 1}


async def test_the_bound_of_tokens_is_told_to_who_has_the_most_tokens() -> None:
    with desks(3) as made:
        made_routers = routers(made, tokens=1000)
        order: list[str] = []
        async with leased(made_routers[0], "m"):
            long = asyncio.create_task(hold(made_routers[1], Ask("m", "long", 950), order))
            many = [
                asyncio.create_task(hold(made_routers[2], Ask("m", "many", 10), order))
                for _ in range(5)
            ]
            await settle()
            small = asyncio.create_task(hold(made_routers[0], Ask("m", "small", 50), order))
            await settle()
            assert long.done()
        await asyncio.gather(*many, small)
        with pytest.raises(QueueFull):
            await long


# --- keys -----------------------------------------------------------------------------------------


def test_a_keys_limits_hold_over_all_workers(two: Desks) -> None:
    now = 1000.0
    rings = [KeyRing((), Counted(), lambda: now, lambda: now, books) for books in two.books]

    def limited(**limits: int) -> None:
        grant = KeyGrant(name="ann", hash=hash_of("k"), created_at=0, **limits)
        for ring in rings:
            ring.apply([grant])

    def ask(worker: int, tokens: int = 1) -> Permit:
        ring = rings[worker]
        return ring.admit(ring.identify("Bearer k"), Ask("m", "ann", new_tokens=tokens), "m")

    limited(concurrency=2)
    held = [ask(0), ask(1)]
    for worker in (0, 1):
        with pytest.raises(TooManyAtOnce):
            ask(worker)
    held.pop().close()
    ask(0).close()
    held.pop().close()
    limited(requests_per_minute=60)
    for number in range(60):
        ask(number % 2).close()
    for worker in (0, 1):
        with pytest.raises(TooManyRequests):
            ask(worker)
    now += 1.0
    ask(1).close()
    with pytest.raises(TooManyRequests):
        ask(0)
    limited(tokens_per_minute=100)
    permit = ask(0, 100)
    with pytest.raises(TooManyTokens):
        ask(1)
    permit.close(completion=40)
    ask(1, 60).close(completion=60)
    with pytest.raises(TooManyTokens):
        ask(0)


def taken(memory: Memory, *name: str) -> Row:
    with memory.locked():
        return memory.row(*name)


# --- the memory -----------------------------------------------------------------------------------


@pytest.fixture
def fd() -> Iterator[int]:
    made = make(3)
    yield made
    os.close(made)


def test_each_has_its_own_and_the_sum_is_everybodys(fd: int) -> None:
    rows = [taken(Memory(fd, worker, 3), "a", "b") for worker in range(3)]
    for number, row in enumerate(rows):
        row.set_mine(1, 10.0**number)
    assert [row.others(1) for row in rows] == [110.0, 101.0, 11.0]
    rows[0].set_common(2, 5.0)
    assert [row.common(2) for row in rows] == [5.0] * 3
    assert rows[0].each(1) == [1.0, 10.0, 100.0]


def test_what_a_dead_worker_held_is_free_and_the_others_keep_theirs(fd: int) -> None:
    memories = [Memory(fd, worker, 3) for worker in range(3)]
    rows = [taken(each, "x") for each in memories]
    for row in rows:
        row.set_mine(1, 7.0)
    with memories[0].locked():
        memories[0].clear(2)
    assert rows[0].each(1) == [7.0, 7.0, 0.0]
    assert rows[0].holders == 2


def test_rows_that_nobody_holds_are_used_again_and_beyond_the_last_each_counts_alone(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "_ROWS", 8)
    one, other = Memory(fd, 0, 3), Memory(fd, 1, 3)
    kept = [taken(one, str(number)) for number in range(7)]  # and the one with the beats
    alone = taken(one, "too much")
    alone.set_mine(1, 3.0)
    alone.set_common(0, 4.0)
    assert alone.each(1) == [3.0, 0.0, 0.0]
    assert taken(one, "too much") is alone
    assert taken(other, "too much").others(1) == 0.0
    kept.pop().set_common(0, 5.0)
    gc.collect()
    with other.locked():
        assert other.known("6") is None
    fresh = taken(other, "new")
    assert (fresh.mine(1), fresh.common(0)) == (0.0, 0.0)
    assert taken(one, "new").holders == 2
    assert taken(one, "5").holders == 1


def test_what_nobody_held_begins_anew(fd: int) -> None:
    one, other = Memory(fd, 0, 3), Memory(fd, 1, 3)
    row = taken(one, "purse")
    row.set_common(0, 5.0)
    assert taken(other, "purse").common(0) == 5.0
    del row
    gc.collect()
    assert taken(other, "purse").common(0) == 0.0


async def test_a_queue_works_in_every_worker_when_the_rows_have_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_module, "_ROWS", 1)
    with desks(2) as made:
        for router in routers(made, max_queue=1):
            order: list[str] = []
            async with leased(router, "m"):
                waits = asyncio.create_task(hold(router, Ask("m", "a"), order))
                await settle()
                with pytest.raises(QueueFull):
                    await hold(router, Ask("m", "a"), order)
            await asyncio.wait_for(waits, 10)
            assert order == ["a"]


_COUNTING = """
import sys
from orchestrator.gateway.workers import memory as module
from orchestrator.gateway.workers.memory import Memory
module._PATIENCE_S = 10.0
memory = Memory(int(sys.argv[1]), int(sys.argv[2]), 3)
with memory.locked():
    row = memory.row("sum")
for _ in range(int(sys.argv[3])):
    with memory.locked():
        row.set_common(0, row.common(0) + 1)
print("done", flush=True)
memory.lock()
sys.stdin.read()
"""


def counting(fd: int, worker: int, times: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", _COUNTING, str(fd), str(worker), str(times)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(argv, cwd=ROOT, pass_fds=(fd,), text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def test_nothing_is_counted_twice_and_who_dies_with_the_lock_leaves_it(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "_PATIENCE_S", 10.0)
    memory, times = Memory(fd, 0, 3), 3000
    row = taken(memory, "sum")
    process = counting(fd, 1, times)
    try:
        for _ in range(times):
            with memory.locked():
                row.set_common(0, row.common(0) + 1)
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        assert row.common(0) == 2 * times
    finally:
        process.kill()
        process.communicate()
    began = time.monotonic()
    with memory.locked():
        row.set_common(0, 0.0)
    assert time.monotonic() - began < 0.5


def test_one_that_was_stopped_with_the_lock_keeps_nobody_waiting(fd: int) -> None:
    memory = Memory(fd, 0, 3)
    process = counting(fd, 1, 1)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        for _ in range(200):
            with memory.locked():
                pass
        assert time.monotonic() - began < 1.0
    finally:
        process.kill()
        process.communicate()
