"""What an operator ordered outlives the supervisor, killed or ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness import Room, until

pytestmark = pytest.mark.slow


def test_pins_and_replicas_are_found_again(make_room: Callable[..., Room]) -> None:
    room = make_room(serial=False).start()
    room.admin("POST", "/admin/models/demo/pin")
    room.admin("POST", "/admin/models/demo/scale", json={"replicas": 2})
    until(lambda: serving(room) == 2, 30, "two serve")
    before = {row["pid"] for row in room.engines()}
    room.kill()
    room.start()
    assert {row["pid"] for row in room.engines()} == before
    row = room.model()
    assert (row["pin"], row["replicas"]) == (True, 2)
    (stands,) = room.events("model.order_stands")
    assert (stands["actor"], stands["detail"]) == ("admin", {"pin": True, "replicas": 2})
    room.admin("POST", "/admin/models/demo/unpin")
    room.admin("POST", "/admin/models/demo/scale", json={"replicas": 1})
    until(lambda: serving(room) == len(room.engines()) == 1, 30, "one serves")
    room.kill()
    room.start()
    assert serving(room) == len(room.engines()) == 1
    assert room.model()["pin"] is False
    assert len(room.events("model.order_stands")) == 1  # nothing stands that was taken back


def test_a_stopped_model_stays_out(make_room: Callable[..., Room]) -> None:
    room = make_room("--tps", "20", serial=False).start()
    with room.stream("Hi", max_new_tokens=500) as events:
        next(events)
        room.admin("POST", "/admin/models/demo/stop", json={"drain_s": 60})
        room.kill()  # before its engine has ended
        room.start()
        room.wait_state("draining")
    room.wait_state("stopped")
    assert room.generate().status_code == 503
    assert room.model()["why"] == "stopped by an operator"
    assert room.stop() == 0
    room.start()
    assert (room.engine()["state"], room.model()["phase"]) == ("stopped", "off")
    room.admin("POST", "/admin/models/demo/start")
    pid = room.wait_state("ready")["pid"]
    room.kill()
    room.start()
    assert room.wait_state("ready")["pid"] == pid
    assert room.generate(max_new_tokens=2).status_code == 200


def serving(room: Room) -> int:
    return sum(row["state"] == "ready" for row in room.engines())
