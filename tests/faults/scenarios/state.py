"""Faults of what is remembered: the state file, the disk below it, the clock."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.disks import Mounted, small_disk
from tests.faults.lab import Lab, scenario
from tests.harness import Room, until


def _cut(data: Path) -> None:
    os.truncate(data / "state.db", 7)
    os.truncate(data / "state.db-wal", 0)


def _random(data: Path) -> None:
    for file in data.glob("state.db*"):
        file.write_bytes(os.urandom(file.stat().st_size))


def _future(data: Path) -> None:
    with closing(sqlite3.connect(data / "state.db")) as db:
        db.execute("PRAGMA user_version=99")


def _nothing_left(data: Path) -> None:
    for file in (*data.glob("state.db*"), data / "state.good.db"):
        file.unlink()


_DAMAGE: tuple[Callable[[Path], None], ...] = (_cut, _random, _future, _nothing_left)


@scenario("F22", "fake")
def state_lost_between_supervisors(lab: Lab) -> None:
    room = lab.make(drain_s=0).start()
    before = room.engine()
    gateway = room.engine("gateway-0")["pid"]
    for spoil in _DAMAGE:
        room.kill()
        spoil(room.data)
        began = time.time()
        room.start()
        lab.took(room.ready["start_seconds"])
        now = room.engine()
        same = ("pid", "generation", "restarts", "state", "plan")
        assert [now[name] for name in same] == [before[name] for name in same], spoil
        assert room.engine("gateway-0")["pid"] == gateway
        assert room.metric("engineroom_storage_degraded") == 0
        assert float(_events(room, "state.recovered")[0]["at"]) >= began, spoil
    assert len(list(room.data.glob("state.broken-*[0-9]"))) == 3
    assert room.generate("still there", max_new_tokens=2).status_code == 200


def _events(room: Room, type: str) -> list[dict[str, Any]]:
    found = room.admin("GET", "/admin/events", params={"type": type}).json()["events"]
    return list(found)


@scenario("F23", "fake")
def disk_full_while_it_serves(lab: Lab) -> None:
    room = lab.make("--tps", "50", drain_s=0)
    with small_disk(room.data, "8m") as disk:
        assert isinstance(disk, Mounted), "needs the right to mount: root, or a user namespace"
        room.start()
        before = room.engine()
        disk.fill()
        began = time.monotonic()
        with room.stream("Hi", max_new_tokens=40) as events:
            number = 0
            while not room.metric("engineroom_storage_degraded"):
                assert room.admin("POST", "/admin/models/demo/pin").status_code == 202
                number += 1
            lab.took(time.monotonic() - began)
            assert list(events)[-1] == "[DONE]"
        assert len(_events(room, "model.pin")) == min(number, 100)
        assert len(_events(room, "storage.degraded")) == 1
        room.kill()
        room.start()  # on the full disk
        assert room.metric("engineroom_storage_degraded") == 1
        assert [room.engine()[name] for name in ("pid", "generation")] == [before["pid"], 1]
        assert room.generate("x", max_new_tokens=1).status_code == 200
        disk.free()
        until(lambda: not room.metric("engineroom_storage_degraded"), 15, "the disk is used again")
        assert len(_events(room, "storage.recovered")) == 1
        assert room.engine()["pid"] == before["pid"]
        assert room.stop() == 0
        room.close()
