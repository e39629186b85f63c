"""Memory claims and the choice of models that stay in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervision.ledger import Holder, Ledger, Room
from orchestrator.supervision.schedule import (
    Keeping,
    Load,
    Phase,
    Refuse,
    Sleep,
    Unload,
    View,
    Wait,
    schedule,
)

G = 1 << 30
ROOMS = {"ram": Room(total=16 * G, free=8 * G)}


def absent(name: str, need: int = 4, **fields: object) -> View:
    return View(name, Phase.ABSENT, need={"ram": need * G}, **fields)  # type: ignore[arg-type]


def serving(name: str, held: int = 4, **fields: object) -> View:
    memory = {"ram": held * G}
    return View(name, Phase.SERVING, need=memory, held=memory, **fields)  # type: ignore[arg-type]


def test_what_is_promised_is_kept_free_until_it_is_taken() -> None:
    ledger = Ledger()
    ledger.claim("a-0", {"ram": 5 * G})
    assert ledger.spare(ROOMS) == {"ram": 3 * G}
    ledger.measure("a-0", {"ram": 2 * G})
    taken = {"ram": Room(16 * G, 6 * G)}
    assert ledger.spare(taken) == {"ram": 3 * G}
    assert ledger.spare(taken, {"a-0"}) == {"ram": 6 * G}
    ledger.ended("a-0")
    assert ledger.spare(ROOMS) == {"ram": 3 * G}
    ledger.release("a-0")
    assert ledger.spare(ROOMS) == {"ram": 8 * G}


def test_a_shortage_names_numbers_and_holders() -> None:
    ledger = Ledger()
    ledger.claim("a-0", {"ram": 5 * G})
    rooms = {"ram": Room(16 * G, 8 * G, (Holder(77, "hog", 3 * G),))}
    assert ledger.shortage("b-0", {"ram": 3 * G}, rooms) is None
    why = ledger.shortage("b-0", {"ram": 6 * G}, rooms)
    assert why == (
        "ram: 6.00 GiB needed, 3.00 GiB of 16.00 GiB free; a-0 holds 5.00 GiB; "
        "process 77 (hog) holds 3.00 GiB"
    )
    assert ledger.shortage("a-0", {"ram": 8 * G}, rooms) is None  # its own claim is no obstacle
    assert ledger.shortage("b-0", {"gpu:1": 1}, rooms) == "gpu:1 is not there any more"


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda pair: (pair[0] * G, pair[1] * G))
    )
)
def test_spare_never_counts_a_byte_twice(claims: list[tuple[int, int]]) -> None:
    ledger = Ledger()
    for number, (promised, taken) in enumerate(claims):
        ledger.claim(f"m-{number}", {"ram": promised})
        ledger.measure(f"m-{number}", {"ram": taken})
    owed = sum(max(0, promised - taken) for promised, taken in claims)
    assert ledger.spare(ROOMS)["ram"] == 8 * G - owed


def test_what_fits_is_loaded_and_nobody_leaves() -> None:
    orders = schedule([absent("a", waiting=1), serving("b")], {"ram": 8 * G})
    assert orders == (Load("a", "requests wait for it"),)


def test_nobody_is_loaded_without_demand() -> None:
    assert schedule([absent("a"), serving("b")], {"ram": 8 * G}) == ()
    assert schedule([absent("a", wanted=True)], {"ram": 8 * G}) == (Load("a", "wanted"),)


def test_two_loads_never_count_on_the_same_bytes() -> None:
    views = [absent("a", waiting=1, waited_s=2), absent("b", waiting=1)]
    orders = schedule(views, {"ram": 6 * G})
    assert [type(order) for order in orders] == [Load, Wait]
    loading = View("a", Phase.LOADING, need={"ram": 4 * G}, held={"ram": 4 * G})
    (order,) = schedule([loading, views[1]], {"ram": 2 * G})
    assert isinstance(order, Wait)
    assert "a is loading" in order.why


def test_idle_models_leave_the_cheapest_first() -> None:
    cheap = serving("cheap", 4, idle_s=100, load_s=1)
    dear = serving("dear", 4, idle_s=100, load_s=50)
    loved = serving("loved", 4, idle_s=100, load_s=1, keeping=Keeping(priority=5))
    recent = serving("recent", 4, idle_s=1, load_s=1)
    orders = schedule([absent("a", waiting=1), dear, recent, cheap, loved], {"ram": 0})
    assert orders == (Unload("cheap", "a needs its place"),)


def test_a_busy_model_keeps_its_place_for_a_turn() -> None:
    busy = serving("b", in_flight=2, waiting=3, load_s=2)
    (order,) = schedule([absent("a", waiting=1), busy], {"ram": 0})
    assert order == Wait("a", "b is busy, for 6 s more at most", 6.0)
    (order,) = schedule([absent("a", waiting=1), replace(busy, served_s=6.0)], {"ram": 0})
    assert order == Unload("b", "a needs its place")
    higher = replace(busy, served_s=60.0, keeping=Keeping(priority=1))
    (order,) = schedule([absent("a", waiting=1), higher], {"ram": 0})
    assert isinstance(order, Wait)
    assert "higher priority" in order.why


def test_a_pinned_model_never_leaves() -> None:
    pinned = serving("b", idle_s=1e6, keeping=Keeping(pin=True, ttl_s=1))
    (order,) = schedule([absent("a", waiting=1), pinned], {"ram": 0})
    assert isinstance(order, Refuse)
    assert order.why == (
        "ram: 4.00 GiB needed, 0 MiB free, 4.00 GiB too few even if all models that may leave did "
        "(b pinned)"
    )


def test_memory_that_is_on_its_way_is_waited_for() -> None:
    leaving = View("b", Phase.LEAVING, held={"ram": 4 * G})
    other = serving("c", idle_s=100)
    (order,) = schedule([absent("a", waiting=1), leaving, other], {"ram": 0})
    assert isinstance(order, Wait)
    assert "b is leaving" in order.why


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Keeping(group="g"), Keeping(group="g")),
        (Keeping(exclusive=True), Keeping()),
        (Keeping(), Keeping(exclusive=True)),
    ],
)
def test_groups_and_exclusive_models_swap_whatever_is_free(mine: Keeping, theirs: Keeping) -> None:
    views = [absent("a", waiting=1, keeping=mine), serving("b", keeping=theirs)]
    assert schedule(views, {"ram": 99 * G}) == (Unload("b", "a needs its place"),)


def test_ttl_unloads_or_puts_to_sleep_what_nobody_uses() -> None:
    idle = serving("a", idle_s=30, keeping=Keeping(ttl_s=30))
    assert schedule([idle], {"ram": 0}) == (Unload("a", "nobody used it for 30 s", "idle"),)
    sleepy = replace(idle, keeping=Keeping(ttl_s=30, sleep_level=1))
    assert schedule([sleepy], {"ram": 0}) == (Sleep("a", 1, "nobody used it for 30 s"),)
    assert schedule([replace(idle, in_flight=1)], {"ram": 0}) == ()
    assert schedule([replace(idle, wanted=True)], {"ram": 0}) == ()


_PHASES = st.sampled_from(list(Phase))
_VIEWS = st.lists(
    st.builds(
        View,
        name=st.text("abcdef", min_size=1, max_size=3),
        phase=_PHASES,
        keeping=st.builds(
            Keeping,
            pin=st.booleans(),
            priority=st.integers(-2, 2),
            ttl_s=st.none() | st.floats(0, 100),
            group=st.none() | st.sampled_from("gh"),
            exclusive=st.booleans(),
            sleep_level=st.integers(0, 2),
        ),
        need=st.fixed_dictionaries({"ram": st.integers(0, 9 * G)}),
        held=st.fixed_dictionaries({"ram": st.integers(0, 9 * G)}),
        wanted=st.booleans(),
        waiting=st.integers(0, 3),
        waited_s=st.floats(0, 100),
        in_flight=st.integers(0, 3),
        idle_s=st.floats(0, 1000),
        served_s=st.floats(0, 1000),
        load_s=st.floats(0.1, 100),
    ),
    max_size=6,
    unique_by=lambda view: view.name,
)


@given(_VIEWS, st.integers(-4 * G, 16 * G))
def test_the_rules_hold_for_whatever_stands_where(views: list[View], spare: int) -> None:
    orders = schedule(views, {"ram": spare})
    by_name = {view.name: view for view in views}
    loaded = [by_name[order.name] for order in orders if isinstance(order, Load)]
    more = sum(view.more.get("ram", 0) for view in loaded)
    assert more <= max(0, spare)
    for order in orders:
        view = by_name[order.name]
        if isinstance(order, Unload | Sleep):
            assert not view.keeping.pin
            assert view.phase in {Phase.SERVING, Phase.ASLEEP}
            assert not view.busy or view.served_s >= view.turn
        else:
            assert view.phase in {Phase.ABSENT, Phase.ASLEEP}
    answered = [order.name for order in orders if not isinstance(order, Unload | Sleep)]
    wanting = {v.name for v in views if v.phase in {Phase.ABSENT, Phase.ASLEEP}
               and (v.waiting or v.wanted)}  # fmt: skip
    making_way = any(isinstance(order, Unload) for order in orders)
    assert set(answered) <= wanting
    assert making_way or set(answered) == wanting
