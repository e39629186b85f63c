"""The store survives damage; one supervisor at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine_launchers.base import LaunchSpec
from orchestrator.errors import AlreadyRunning
from orchestrator.runtimes.base import HandleRecord
from orchestrator.supervision.lock import only_one
from orchestrator.supervision.store import Store


def record(tmp_path: Path) -> HandleRecord:
    return HandleRecord(
        name="demo-0",
        generation=3,
        spec=LaunchSpec(argv=("x",)),
        folder=tmp_path,
        socket=tmp_path / "s",
        log=tmp_path / "l",
    )


def test_records_and_events_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.save("print", record(tmp_path), None)
    store.add_event("engine.state", "demo-0", old="starting", new="ready")
    store.close()
    again = Store(tmp_path / "state.db")
    assert [row.record for row in again.saved()] == [record(tmp_path)]
    assert again.events(5, "demo-0")[0]["detail"] == {"old": "starting", "new": "ready"}
    assert again.events(5, "other") == []
    again.forget("demo-0")
    assert again.saved() == ()
    again.close()


@pytest.mark.parametrize("damage", [b"", b"not a database, not at all" * 50, None, b"cut"])
def test_a_damaged_file_is_set_aside_and_work_goes_on(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "state.db"
    store = Store(path)
    store.save("print", record(tmp_path), None)
    store.close()
    if damage is None:
        import sqlite3

        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
    else:
        path.write_bytes(path.read_bytes()[:5000] if damage == b"cut" else damage)
    again = Store(path)
    again.add_event("x", "y")
    assert again.events()[0]["type"] == "x"
    again.close()
    assert bool(list(tmp_path.glob("*.broken-*"))) == (damage != b"")


def test_a_row_that_cannot_be_read_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.save("print", record(tmp_path), None)
    store._db.execute("UPDATE instances SET record = '{}'")
    assert store.saved() == ()
    store.close()


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with only_one(path), pytest.raises(AlreadyRunning, match=str(os.getpid())), only_one(path):
        pass
    with only_one(path):
        pass
