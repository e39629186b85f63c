"""The store: what it keeps, how it migrates, and that no damage and no disk stops it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_launchers.base import EnginePlan, LaunchSpec
from orchestrator.errors import AlreadyRunning
from orchestrator.runtimes.base import HandleRecord, ShimHold
from orchestrator.supervision import schema
from orchestrator.supervision import store as stores
from orchestrator.supervision.database import ASIDE
from orchestrator.supervision.lock import only_one
from orchestrator.supervision.records import COPY
from orchestrator.supervision.store import Store
from tests.disks import Disk, Limited, small_disk
from tests.examples import examples
from tests.plans import box, planned

FIRST_RELEASE = """
CREATE TABLE IF NOT EXISTS instances (
  name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, record TEXT NOT NULL, plan TEXT);
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, actor TEXT NOT NULL,
  type TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL);
PRAGMA user_version=1;
"""


def record(data: Path, generation: int = 3, name: str = "demo-0") -> HandleRecord:
    return HandleRecord(
        name=name,
        generation=generation,
        spec=LaunchSpec(argv=("x",)),
        folder=data / "instances" / name / str(generation),
        hold=ShimHold(socket=data / "s"),
        log=data / "l",
    )


@pytest.fixture(scope="module")
def plan() -> EnginePlan:
    return planned("mistral-7b-instruct-v0.3", box("RTX 4090"))


def types(store: Store) -> list[str]:
    return [event.type for event in store.events()]


def test_records_plans_and_events_are_kept(tmp_path: Path, plan: EnginePlan) -> None:
    store = Store(tmp_path / "state.db")
    store.save("print", record(tmp_path), plan, "wanted at start")
    store.save("print", record(tmp_path), plan)  # its pids are known: still the same launch
    store.save("print", record(tmp_path, 4), plan.model_copy(update={"rung": 1}))
    store.add_event(
        "engine.state", "demo-0", old="starting", odd=(float("nan"), "\ud800", tmp_path)
    )
    store.close()
    again = Store(tmp_path / "state.db")
    assert [row.record for row in again.saved()] == [record(tmp_path, 4)]
    assert again.saved()[0].plan == plan.model_copy(update={"rung": 1})
    told = again.events(5, "demo-0", "engine")[0]
    assert told.detail == {"old": "starting", "odd": ["NaN", "?", str(tmp_path)]}
    assert again.events(5, "other") == ()
    assert [(row["generation"], row["why"]) for row in again.plans(subject="demo-0")] == [
        (4, plan.reasons[-1]),
        (3, "wanted at start"),
    ]
    assert EnginePlan.model_validate_json(again.plans()[1]["plan"]) == plan
    again.forget("demo-0")
    assert again.saved() == ()
    assert Store(tmp_path / "other.db", tmp_path / "instances").saved() == ()
    again.close()


def test_a_file_of_the_first_release_is_migrated(tmp_path: Path, plan: EnginePlan) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as db:
        db.executescript("PRAGMA journal_mode=WAL;" + FIRST_RELEASE)
        own = (record(tmp_path).model_dump_json(), plan.model_dump_json())
        db.execute("INSERT INTO instances VALUES ('demo-0', 'print', ?, ?)", own)
        db.execute("INSERT INTO instances VALUES ('gateway-0', 'g', '{}', NULL)")
        event = (7, 12.5, "admin", "model.stop", "demo", '{"drain_s": 1}')
        db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", event)
    db.close()
    store = Store(path)
    assert [(row.fingerprint, row.plan) for row in store.saved()] == [("print", plan)]
    assert [each.row() for each in store.events()] == [event]
    assert store.add_event("x", "y").id == 8
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA,)
    db.close()
    assert not list(tmp_path.glob("*.broken-*"))


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One way to spoil a file."""
    at = chance.randrange(len(data))
    match chance.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:7]
        case 2:
            return chance.randbytes(chance.choice([1, 512, len(data)]))
        case 3:
            return data[:at] + bytes(min(4096, len(data) - at)) + data[at + 4096 :]
        case 4:
            return data[:at] + chance.randbytes(64) + data[at + 64 :]
        case _:
            return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


@pytest.fixture(scope="module")
def whole(plan: EnginePlan) -> Iterator[Path]:
    """A data directory as a supervisor leaves it; in memory, for speed."""
    data = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    store = Store(data / "state.db")
    for name in ("demo-0", "other-0"):
        store.save("print", record(data, name=name), plan)
    for number in range(40):
        store.add_event("engine.state", "demo-0", number=number)
    store.close()
    yield data
    shutil.rmtree(data)


@given(
    st.integers(0, 2**32), st.sets(st.sampled_from(["state.db", "state.good.db", COPY]), min_size=1)
)
@settings(max_examples=examples(256), deadline=None)
def test_no_damage_stops_it_and_nothing_false_is_read(
    whole: Path, seed: int, spoiled: set[str]
) -> None:
    chance = random.Random(seed)
    truth = {name: record(whole, name=name) for name in ("demo-0", "other-0")}
    kept = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    try:
        for file, data in kept.items():
            if file.name in spoiled:
                file.write_bytes(mutated(data, chance))
        store = Store(whole / "state.db")
        found = {row.name: row.record for row in store.saved()}
        assert found.items() <= truth.items()
        if "state.db" not in spoiled or COPY not in spoiled:
            assert found == truth
        fresh = store.add_event("x", "y")
        assert store.events(1) == (fresh,)
        assert store.degraded == ""
        store.close()
        again = Store(whole / "state.db")
        assert {row.name: row.record for row in again.saved()} == found
        assert again.events(1)[0] == fresh
        again.close()
        assert len(list(whole.glob("*.broken-*[0-9]"))) <= ASIDE
    finally:
        for file in set(whole.rglob("*")) - set(kept):
            file.unlink() if file.is_file() else None
        for file, data in kept.items():
            file.write_bytes(data)


@pytest.mark.parametrize("how", ["future", "empty", "missing", "random"])
def test_a_lost_file_is_told_kept_aside_and_made_again(
    whole: Path, tmp_path: Path, how: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(whole, data)
    path = data / "state.db"
    whole_one = Store(path)
    before = whole_one.events(1)[0].id
    whole_one.close()
    if how == "future":
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version=99")
        db.close()
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else os.urandom(9000))
    store = Store(path, whole / "instances")
    told = store.events(1)[0]
    assert (told.type, told.detail["processes"]) == ("state.recovered", ["demo-0", "other-0"])
    assert told.id > before + 1  # those that were lost may have had the ids between
    assert len(store.events(100, "demo-0", "engine")) == 40
    assert bool(list(data.glob("*.broken-*"))) == (how in ("future", "random"))
    if how == "future":
        assert "newer" in str(told.detail["why"])
    store.close()


@pytest.mark.parametrize("how", ["cut", "replaced", "garbage"])
def test_damage_while_it_runs_costs_nothing(tmp_path: Path, how: str) -> None:
    store = Store(tmp_path / "state.db")
    store.save("print", record(tmp_path), None)
    for number in range(300):
        store.add_event("engine.state", "demo-0", number=number, text="x" * 100)
    store._renew_copy()
    store.add_event("after", "the copy")
    if how == "cut":
        os.truncate(store.path, 7)
    elif how == "replaced":
        (tmp_path / "other").write_bytes(b"something else")
        (tmp_path / "other").replace(store.path)
    else:
        with store.path.open("r+b") as file:
            file.write(os.urandom(store.path.stat().st_size))
        store._renew_copy()  # what else would look at pages that memory has?
    store.tend()
    assert store.degraded == ""
    assert types(store)[:2] == ["state.recovered", "after"]
    store.close()
    again = Store(store.path)
    assert [row.record for row in again.saved()] == [record(tmp_path)]
    assert len(again.events(1000, type="engine")) == 300
    again.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of one MiB."""
    with small_disk(tmp_path / "disk") as made:
        yield made


def test_a_full_disk_is_outlived_in_memory(disk: Disk) -> None:
    store = Store(disk.path / "state.db")
    store.save("print", record(disk.path), None)
    disk.fill()
    number = 0
    while not store.degraded:
        store.add_event("engine.state", "demo-0", number=(number := number + 1), text="x" * 3000)
    store.save("print", record(disk.path, 4), None)
    store.add_event("after", "y")
    store.tend()
    assert types(store)[:2] == ["after", "storage.degraded"]
    assert [row.record.generation for row in store.saved()] == [4]
    full = Store(disk.path / "state.db")  # a supervisor that starts on the full disk
    assert full.degraded
    assert [row.record.name for row in full.saved()] == ["demo-0"]
    full.close()
    disk.free()
    store.tend()
    assert store.degraded == ""
    assert types(store)[:3] == ["storage.recovered", "after", "storage.degraded"]
    store.close()
    again = Store(store.path)
    assert [row.record.generation for row in again.saved()] == [4]
    assert len(again.events(1000, type="engine")) == number
    again.close()


def test_a_read_only_disk_is_read(disk: Disk) -> None:
    store = Store(disk.path / "state.db")
    store.save("print", record(disk.path), None)
    store.add_event("before", "y")
    store.close()
    disk.lock()
    again = Store(store.path)
    again.add_event("after", "y")
    assert again.degraded
    assert types(again) == ["after", "storage.degraded", "before"]
    assert [row.record for row in again.saved()] == [record(disk.path)]
    again.forget("demo-0")
    again.tend()
    disk.unlock()
    again.tend()
    assert (again.degraded, again.saved()) == ("", ())
    again.close()


def test_writes_that_the_kernel_refuses_are_outlived(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    disk = Limited(tmp_path)
    disk.fill()
    try:
        store.save("print", record(tmp_path), None)
        store.add_event("x", "y")
        store.tend()
        assert store.degraded
    finally:
        disk.free()
    store.tend()
    assert store.degraded == ""
    store.close()
    again = Store(store.path)
    assert [row.name for row in again.saved()] == ["demo-0"]
    again.close()


def test_somebody_elses_lock_is_waited_out_in_memory(tmp_path: Path) -> None:
    Store(tmp_path / "state.db").close()
    other = sqlite3.connect(tmp_path / "state.db")
    other.execute("BEGIN EXCLUSIVE")
    store = Store(tmp_path / "state.db")
    store.add_event("x", "y")
    assert "locked" in store.degraded
    other.close()
    store.tend()
    assert store.degraded == ""
    store.close()


def test_what_comes_after_its_end_harms_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.add_event("before", "y")
    store.close()
    store.add_event("after", "y")
    store.tend()
    store.save("print", record(tmp_path), None)  # known by its folder
    store.close()
    again = Store(store.path)
    assert types(again) == ["state.recovered", "before"]
    assert again.events(1)[0].detail["why"] == "it did not know of demo-0"
    assert [row.name for row in again.saved()] == ["demo-0"]
    again.close()
    quiet = Store(store.path)
    assert len(quiet.events(10, type="state")) == 1
    quiet.close()


def test_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "KEPT", 300)
    store = Store(tmp_path / "state.db")
    for _ in range(1000):
        store.add_event("x", "y")
    assert [event.id for event in store.events(1000)] == list(range(1000, 700, -1))
    assert [event.id for event in store.events_after(990, 3)] == [991, 992, 993]
    store.close()


async def test_the_next_event_can_be_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    waiting = [asyncio.create_task(store.journal.wait(0)) for _ in range(2)]
    waiting[1].cancel()
    await asyncio.sleep(0)
    store.add_event("x", "y")
    await asyncio.wait_for(waiting[0], 20)
    last = asyncio.create_task(store.journal.wait(1))
    await asyncio.sleep(0)
    assert not last.done()
    store.close()
    await asyncio.wait_for(last, 20)


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with only_one(path), pytest.raises(AlreadyRunning, match=str(os.getpid())), only_one(path):
        pass
    with only_one(path):
        pass
