"""What a running engine shows of its speed, and the next plan that is made with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness import Room, until
from tests.streams import check_stream

pytestmark = pytest.mark.slow

TPS = 50


def whole_stream(room: Room, tokens: int = 40) -> None:
    with room.stream("Hi", max_new_tokens=tokens) as events:
        check_stream(events, tokens)


def learned(room: Room) -> dict[str, Any] | None:
    (row, *_) = room.admin("GET", "/admin/calibration").json()["calibration"] or [None]
    return dict(row) if row else None


def spoken(room: Room) -> dict[str, Any] | None:
    row = learned(room)
    return row if row and row["tokens_per_second"] else None


def test_the_speed_of_single_streams_is_learned_and_planned_with(
    make_room: Callable[..., Room],
) -> None:
    flags: dict[str, Any] = {"serial": False, "stable_s": 0.5}
    room = make_room("--tps", str(TPS), "--slots", "4", **flags).start()
    with ThreadPoolExecutor(4) as many:
        list(many.map(lambda _: whole_stream(room, 100), range(4)))
    row = until(lambda: learned(room), 30, "the plan has held")
    assert row["tokens_per_second"] is None  # none of them was alone
    for _ in range(2):
        whole_stream(room)
    speed = until(lambda: spoken(room), 30, "its speed is known")["tokens_per_second"]
    assert 0 < speed < 1.1 * TPS
    before = room.admin("GET", "/admin/models/demo/plan").json()
    assert room.stop() == 0

    room.start()
    plan = room.admin("GET", "/admin/models/demo/plan").json()
    assert plan["expected"]["tokens_per_second"] == [speed, speed]
    (why,) = set(plan["reasons"]) - set(before["reasons"]) - told_of_loading(plan)
    assert why.startswith("measured here on ")
    assert f": {speed:.1f} tokens/s for one stream" in why


def told_of_loading(plan: dict[str, Any]) -> set[str]:
    """The reasons that are about memory and loading."""
    return {each for each in plan["reasons"] if "ram: " in each or each.startswith("loaded in")}
