"""The fair queue: equal tokens, higher first, nobody for ever; and how fast it is told to move."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DeadlineExceeded, ModelUnavailable, QueueFull
from orchestrator.gateway.asking import Ask, ask_for
from orchestrator.gateway.fairness import Entry, FairQueue
from orchestrator.gateway.pace import Pace
from orchestrator.gateway.routing import Router
from tests.leases import leased
from tests.unit.test_routing import enter, replica, router, settle, table

COST = st.integers(1, 500)


def entry(
    key: str, cost: int = 1, priority: int = 0, since: float = 0.0, prompt: int = 0
) -> Entry[str]:
    return Entry(key, key, cost, prompt, priority, since)


def served(queue: FairQueue[str]) -> Entry[str]:
    turn = queue.next()
    assert turn is not None
    queue.serve(turn)
    return turn


@given(
    st.dictionaries(st.sampled_from("abcde"), st.lists(COST, min_size=1, max_size=40), min_size=2)
)
def test_keys_that_both_wait_get_the_same_tokens_give_or_take_one_request(
    costs: dict[str, list[int]],
) -> None:
    queue: FairQueue[str] = FairQueue()
    for key, mine in costs.items():
        for cost in mine:
            queue.push(entry(key, cost))
    largest = max(cost for mine in costs.values() for cost in mine)
    left, got = {key: len(mine) for key, mine in costs.items()}, Counter(dict.fromkeys(costs, 0))
    while queue:
        turn = served(queue)
        got[turn.key] += turn.cost
        left[turn.key] -= 1
        waiting = [got[key] for key, count in left.items() if count]
        if waiting:
            assert max(waiting) - min(waiting) <= largest
    assert got == {key: sum(mine) for key, mine in costs.items()}
    assert queue.next() is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "serve", "leave", "again"]), st.sampled_from("abc"),
                  COST, st.integers(-3, 3), st.integers(0, 99)),
        max_size=120,
    )
)  # fmt: skip
def test_everyone_is_in_it_exactly_once_until_served_or_gone(steps: list[Any]) -> None:
    queue: FairQueue[str] = FairQueue()
    inside: list[Entry[str]] = []
    for number, (what, key, cost, priority, pick) in enumerate(steps):
        made = entry(key, cost, priority, float(number), prompt=cost)
        if what in ("push", "again"):
            queue.push(made) if what == "push" else queue.push_first(made)
            inside.append(made)
        elif inside and what == "leave":
            gone = inside.pop(pick % len(inside))
            queue.remove(gone)
            queue.remove(gone)
        elif what == "serve":
            turn = next(iter(queue.first()), None) or queue.next()
            assert (turn is None) == (not inside)
            if turn is not None:
                queue.serve(turn)
                inside.remove(turn)
        assert len(queue) == len(inside)
        assert {id(each) for each in queue} == {id(each) for each in inside}
        waiting = [each for each in inside if each not in queue.first()]
        assert queue.prompt_tokens == sum(each.prompt for each in waiting)


@given(st.integers(1, 20), st.integers(1, 50), st.integers(1, 200))
def test_nothing_starves_behind_higher_priorities_and_other_keys(
    ahead: int, others: int, cost: int
) -> None:
    """One arrives a second, one is served a second: the low one goes once its wait outweighs."""
    queue: FairQueue[str] = FairQueue()
    low = entry("low", cost, priority=-ahead, since=0.0)
    queue.push(low)
    for other in range(others):
        queue.push(entry(f"k{other}", cost))
    for second in range(1, ahead + others + 3):
        queue.push(entry("busy", cost, priority=0, since=float(second)))
        if served(queue) is low:
            return
    raise AssertionError("the low one still waits")


def test_higher_first_and_a_second_of_waiting_is_worth_a_point() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(entry("old", since=0.0))
    queue.push(entry("urgent", priority=5, since=4.0))
    queue.push(entry("later", priority=5, since=6.0))
    assert [served(queue).key for _ in range(3)] == ["urgent", "old", "later"]


def test_what_was_not_used_is_given_back() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(20):
        queue.push(entry("modest", 100))  # asks for much and takes little
        queue.push(entry("exact", 100))
    got: Counter[str] = Counter()
    for _ in range(20):
        turn = served(queue)
        got[turn.key] += 10 if turn.key == "modest" else 100
        if turn.key == "modest":
            queue.settle("modest", 0, 90)
    assert abs(got["modest"] - got["exact"]) <= 100


def test_a_key_that_comes_later_saves_nothing_up_and_owes_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push(entry("early", 10))
    for _ in range(5):
        served(queue)
    for _ in range(5):
        queue.push(entry("late", 10))
    keys = [served(queue).key for _ in range(10)]
    assert abs(keys[:6].count("late") - 3) <= 1


def test_a_full_queue_turns_away_whoever_fills_it() -> None:
    queue: FairQueue[str] = FairQueue()
    greedy = [entry("greedy", prompt=10, since=float(n)) for n in range(8)]
    for each in greedy:
        queue.push(each)
    queue.push(entry("other", prompt=100))
    assert queue.victim(entry("greedy"), by_tokens=False) is None
    assert queue.victim(entry("new"), by_tokens=False) is greedy[-1]
    tokens = queue.victim(entry("new", prompt=1), by_tokens=True)
    assert tokens is not None
    assert tokens.key == "other"
    assert queue.victim(entry("new", prompt=200), by_tokens=True) is None
    low = entry("quiet", priority=-1)
    queue.push(low)
    assert queue.victim(entry("greedy"), by_tokens=False) is low


def test_the_time_to_come_back_is_what_was_seen() -> None:
    pace = Pace()
    assert pace.retry_after(10, otherwise=7.0) == 7.0
    for second in range(30):
        pace.completed(second * 0.5, waiting=4)
    assert pace.retry_after(10, otherwise=7.0) == pytest.approx(5.0)
    pace.completed(20.0, waiting=0)
    pace.completed(500.0, waiting=3)  # nobody waited meanwhile
    assert 5.0 <= pace.retry_after(10, otherwise=7.0) < 12.0
    assert pace.retry_after(0, 1.0) == 1.0
    assert pace.retry_after(10**6, 1.0) == 60.0


# --- the same in the router -----------------------------------------------------------------------


async def hold(made: Router, ask: Ask, order: list[str]) -> None:
    async with leased(made, ask) as lease:
        order.append(ask.key)
        lease.tokens = ask.cost
        await settle()


async def test_two_keys_share_one_place() -> None:
    made, order = router(replica()), list[str]()
    async with leased(made, "m"):
        asks = [Ask("m", "greedy", new_tokens=10)] * 30 + [Ask("m", "other", new_tokens=10)] * 10
        tasks = [asyncio.create_task(hold(made, ask, order)) for ask in asks]
        await settle()
    await asyncio.gather(*tasks)
    assert abs(order[:20].count("other") - 10) <= 1
    assert made.in_flight() == {"m-0": 0}


async def test_the_queue_is_bounded_by_tokens_too_and_a_lone_prompt_may_be_long() -> None:
    made = Router(100, 5.0, max_queue_tokens=100)
    made.apply(table(replica()))
    async with leased(made, "m"):
        lone = asyncio.create_task(hold(made, Ask("m", "a", prompt_tokens=1000), []))
        await settle()
        with pytest.raises(QueueFull):
            await hold(made, Ask("m", "a", prompt_tokens=1), [])
        small = asyncio.create_task(hold(made, Ask("m", "b", prompt_tokens=50), []))
        await settle()  # the key with the long prompt leaves for it
        assert made.waiting() == {"m": 1}
    with pytest.raises(QueueFull):
        await lone
    await small


async def test_a_wait_ends_at_the_requests_own_deadline_with_its_own_answer() -> None:
    now = 100.0
    made = Router(10, 5.0, clock=lambda: now)
    made.apply(table(replica(accepting=False)))
    with pytest.raises(DeadlineExceeded):
        await enter_with(made, Ask("m", deadline=100.02))
    with pytest.raises(DeadlineExceeded):
        await enter_with(made, Ask("m", deadline=99.0))
    short = Router(10, 0.01, clock=lambda: now)
    short.apply(table(replica(accepting=False)))
    with pytest.raises(ModelUnavailable):  # ours is over first
        await enter_with(short, Ask("m", deadline=200.0))
    assert made.waiting() == {"m": 0}
    made.apply(table(replica(), version=2))
    assert await enter(made) == "m-0"


async def enter_with(made: Router, ask: Ask) -> None:
    async with leased(made, ask):
        pass


def test_an_ask_is_read_from_body_and_headers() -> None:
    body = {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 7}
    headers = {b"x-request-priority": b"50", b"x-request-timeout": b"2.5"}
    ask = ask_for("m", body, headers, 10.0, key="k", ceiling=5)
    assert (ask.prompt_tokens, ask.new_tokens, ask.priority, ask.deadline) == (101, 7, 5, 12.5)
    own = ask_for("m", body, headers, 10.0, ceiling=100, priority=-3, timeout=1)
    assert (own.priority, own.deadline) == (-3, 11.0)
    first = ask.affinity
    longer = [*body["messages"], {"role": "assistant", "content": "y"}]  # type: ignore[misc]
    assert ask_for("m", {"messages": longer}, {}, 0).affinity == first
    other = [{"role": "user", "content": "z"}]
    assert ask_for("m", {"messages": other}, {}, 0).affinity != first
    session = {b"x-session-id": b"s"}
    assert (
        ask_for("m", body, session, 0).affinity
        == ask_for("m", {"messages": other}, session, 0).affinity
    )
    assert ask_for("m", {"prompt": "short"}, {}, 0).affinity == b""
    assert ask_for("m", {"prompt": "x" * 2000}, {}, 0).affinity != b""


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "-1", "0", "1e9", "1\x00"])
def test_a_header_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(Exception, match="has to be a number"):
        ask_for("m", {"prompt": "x"}, {b"x-request-timeout": value.encode()}, 0)
