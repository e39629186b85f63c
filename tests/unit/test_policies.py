"""Routing policies: who gets the next request, and what they promise."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control import Routing
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.policies.base import Policy
from orchestrator.gateway.policies.choice import policy_for
from orchestrator.gateway.policies.least import Least
from orchestrator.gateway.policies.pair import Pair
from orchestrator.gateway.policies.prefix import BOUND, FLOOR, Prefix, Ring
from tests.leases import leased
from tests.unit.test_routing import replica, router, table


@dataclass
class Fixed:
    """A fleet with these loads, some of it closed."""

    loads: list[int]
    closed: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        return len(self.loads)

    @property
    def total(self) -> int:
        return sum(self.loads)

    def load(self, index: int) -> int:
        return self.loads[index]

    def open(self, index: int) -> bool:
        return index not in self.closed


FLEETS = st.lists(st.integers(0, 20), min_size=1, max_size=20).flatmap(
    lambda loads: st.builds(Fixed, st.just(loads), st.sets(st.integers(0, len(loads) - 1)))
)
NAMES: tuple[Routing, ...] = ("auto", "least", "prefix", "p2c")


def made(name: Routing, size: int, seed: int = 0) -> Policy:
    return policy_for(name, [f"m-{n}" for n in range(size)], random.Random(seed).randrange)


@given(FLEETS, st.sampled_from(NAMES), st.binary(max_size=8), st.integers(0, 99))
def test_an_open_replica_is_always_found_and_never_a_closed_one(
    fleet: Fixed, name: Routing, affinity: bytes, seed: int
) -> None:
    chosen = made(name, fleet.size, seed).choose(fleet, affinity)
    if len(fleet.closed) == fleet.size:
        assert chosen is None
    else:
        assert chosen is not None
        assert fleet.open(chosen)


@given(FLEETS, st.binary(min_size=1, max_size=8))
def test_affinity_never_goes_over_its_bound_where_it_can_be_kept(
    fleet: Fixed, affinity: bytes
) -> None:
    chosen = made("prefix", fleet.size).choose(fleet, affinity)
    most = max(FLOOR, math.ceil(BOUND * (fleet.total + 1) / fleet.size))
    within = [n for n in range(fleet.size) if fleet.open(n) and fleet.loads[n] < most]
    if within and fleet.size > 1:
        assert chosen in within


def test_least_takes_the_shortest_line_and_the_first_of_equals() -> None:
    assert Least().choose(Fixed([3, 1, 1]), b"x") == 1
    assert Least().choose(Fixed([3, 1, 1], {1, 2}), b"x") == 0
    assert Least().choose(Fixed([1], {0}), b"x") is None


def test_the_same_prefix_meets_the_same_replica_until_that_one_has_its_share() -> None:
    policy, fleet, met = made("prefix", 8), Fixed([0] * 8), []
    for _ in range(40):
        chosen = policy.choose(fleet, b"hello")
        assert chosen is not None
        fleet.loads[chosen] += 1
        met.append(chosen)
    assert max(fleet.loads) <= math.ceil(BOUND * 41 / 8)
    empty = Fixed([0] * 8)
    assert {policy.choose(empty, b"hello") for _ in range(20)} == {met[0]}


def test_a_replica_that_leaves_moves_only_what_was_its_own() -> None:
    before = Prefix([f"m-{n}" for n in range(10)], Least())
    after = Prefix([f"m-{n}" for n in range(9)], Least())
    moved = Counter[bool]()
    for number in range(2000):
        old = before.choose(Fixed([0] * 10), number.to_bytes(4, "big"))
        new = after.choose(Fixed([0] * 9), number.to_bytes(4, "big"))
        if old != 9:
            assert old == new
        moved[old == 9] += 1
    assert 100 < moved[True] < 350  # a tenth, as even as 64 points make it


def test_a_ring_has_everyone_once_in_an_order_of_its_own() -> None:
    ring = Ring([f"m-{n}" for n in range(30)])
    walks = [tuple(ring.walk(bytes([n]))) for n in range(50)]
    assert all(sorted(walk) == list(range(30)) for walk in walks)
    assert len(set(walks)) > 40


def test_two_choices_are_far_better_than_one() -> None:
    draw = random.Random(7).randrange
    policy, fleet, blind = Pair(draw), Fixed([0] * 100), [0] * 100
    for _ in range(1000):
        chosen = policy.choose(fleet, b"")
        assert chosen is not None
        fleet.loads[chosen] += 1
        blind[draw(100)] += 1
    assert max(fleet.loads) <= 13 < max(blind)


@pytest.mark.parametrize(
    ("name", "size", "kinds"),
    [
        ("auto", 1, (Least, Least)), ("auto", 2, (Prefix, Least)), ("auto", 16, (Prefix, Pair)),
        ("least", 99, (Least, Least)), ("p2c", 2, (Pair, Pair)), ("prefix", 15, (Prefix, Least)),
    ],
)  # fmt: skip
def test_what_a_setting_means(name: Routing, size: int, kinds: tuple[type, type]) -> None:
    policy = made(name, size)
    assert type(policy) is kinds[0]
    assert type(getattr(policy, "_otherwise", policy)) is kinds[1]


async def test_the_router_keeps_a_conversation_on_its_replica_while_that_is_open() -> None:
    names = [replica(f"m-{n}", places=4) for n in range(4)]
    made = router(*names)

    async def where(affinity: bytes) -> str:
        async with leased(made, Ask("m", affinity=affinity)) as lease:
            return lease.replica.id

    homes = {n: await where(bytes([n])) for n in range(40)}
    assert len(set(homes.values())) == 4
    made.apply(table(*names, version=2))
    assert {n: await where(bytes([n])) for n in range(40)} == homes
    closed = [each.model_copy(update={"accepting": each.id != "m-1"}) for each in names]
    made.apply(table(*closed, version=3))
    for number, home in homes.items():
        now = await where(bytes([number]))
        assert now != "m-1"
        assert now == home or home == "m-1"


def test_a_prompt_of_everybody_is_everywhere_and_a_rare_one_in_one_place() -> None:
    policy, met = made("prefix", 8), dict[bytes, Counter[int]]()
    groups = [bytes([n]) * 8 for n in range(40)]
    for number in range(6000):
        group = groups[0] if number % 2 else groups[number % 40]
        chosen = policy.choose(Fixed([0] * 8), group + number.to_bytes(8, "big"))
        assert chosen is not None
        met.setdefault(group, Counter())[chosen] += 1
    popular = met.pop(groups[0])
    assert len(popular) == 8
    assert all(counts.most_common(1)[0][1] == counts.total() for counts in met.values())
    assert len({next(iter(counts)) for counts in met.values()}) > 5


def test_a_conversation_stays_where_it_is_while_its_group_keeps_its_share() -> None:
    policy = made("prefix", 16)
    chats = [bytes(8) + bytes([n]) * 8 for n in range(30)]
    others = random.Random(1)
    for turn in range(200):  # an eighth of all requests: a share of two and a half replicas
        for chat in chats:
            policy.choose(Fixed([0] * 16), chat)
        for _ in range(430):
            policy.choose(Fixed([0] * 16), others.randbytes(16))
        homes = [policy.choose(Fixed([0] * 16), chat) for chat in chats]
        if turn == 100:
            early = homes
    assert homes == early
    assert 1 < len(set(homes)) <= 4


@given(FLEETS, st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=30))
def test_two_hashes_break_no_promise(fleet: Fixed, asked: list[bytes]) -> None:
    policy = made("prefix", fleet.size)
    most = max(FLOOR, math.ceil(BOUND * (fleet.total + 1) / fleet.size))
    within = {n for n in range(fleet.size) if fleet.open(n) and fleet.loads[n] < most}
    for affinity in asked:
        chosen = policy.choose(fleet, affinity)
        assert (chosen is None) == (len(fleet.closed) == fleet.size)
        if within and fleet.size > 1:
            assert chosen in within
