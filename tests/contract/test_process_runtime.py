"""What is a shim's: processes below it, its loss, its control groups."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from engine_launchers.base import ExitResult
from orchestrator.runtimes.base import Handle, HandleRecord, Identity
from orchestrator.runtimes.handle import LOST
from orchestrator.runtimes.process import is_alive
from orchestrator.runtimes.remains import hold_of, leaf_of
from tests.containers import over
from tests.contract.stands import ENGINE, ESCAPING, FOREVER, Stand, process_stand, up
from tests.harness import eventually, watched_by, within


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with process_stand(tmp_path) as stand:
        yield stand


def shim_of(handle: Handle) -> Identity:
    """The identity of a handle's shim."""
    shim = hold_of(handle.record).shim
    assert shim is not None
    return shim


def held_by(record: HandleRecord, shim: Identity) -> HandleRecord:
    """The record with another shim."""
    hold = hold_of(record).model_copy(update={"shim": shim})
    return record.model_copy(update={"hold": hold})


def leave_the_leaf(record: HandleRecord) -> None:
    """Undo the control groups of an engine, as on a system that lets us make none."""
    for folder in hold_of(record).leaf:
        above = folder.parent / "cgroup.procs"
        for pid in (folder / "cgroup.procs").read_text().split():
            above.write_text(pid)
    assert leaf_of(record).remove()
    (record.folder / "leaf.json").unlink()


async def engine_with_a_part(stand: Stand, *knobs: str) -> tuple[Handle, int]:
    """The fake engine with a vital child that the shim has had time to find; the child's pid."""
    argv = (str(ENGINE), "--port", "0", "--vital-child", "FAKE::Worker_1", *knobs)
    handle = await stand.runtime.start(
        stand.runtime.record("child", 1, stand.spec(*argv, vital=("FAKE::Worker",)))
    )

    def part() -> int | None:
        told = handle.record.log.read_text() if handle.record.log.exists() else ""
        words = [line.split()[1] for line in told.splitlines() if line.startswith("vital ")]
        return int(words[0]) if words else None

    await eventually(part, 10, "a vital child")
    shim, child = shim_of(handle), part()
    assert child is not None
    await eventually(lambda: child in watched_by(shim.pid), 10, "the shim holds it")
    return handle, child


async def test_the_end_of_a_vital_descendant_is_the_end_of_all(stand: Stand) -> None:
    handle, part = await engine_with_a_part(stand, "--ignore-sigterm")
    with within(2, "all of it ends"):
        os.kill(part, signal.SIGKILL)
        exit = await handle.wait()
    assert exit.part == f"FAKE::Worker_1 ({part})"
    assert exit.signal in {9, None}  # its parent may have taken its status before the shim read it
    assert str(exit).startswith(f"its FAKE::Worker_1 ({part}) ended")
    assert handle.record.child is not None
    assert not is_alive(handle.record.child)


async def test_an_engine_that_ends_its_own_parts_says_why_itself(stand: Stand) -> None:
    handle, part = await engine_with_a_part(stand, "--graceful-exit-0")
    os.kill(part, signal.SIGTERM)
    assert handle.record.child is not None
    os.kill(handle.record.child.pid, signal.SIGTERM)
    assert await handle.wait() == ExitResult(code=0)


async def test_a_stop_that_was_asked_for_is_no_lost_part(stand: Stand) -> None:
    handle, part = await engine_with_a_part(stand, "--graceful-exit-0")
    assert await handle.stop(5) == ExitResult(code=0)
    assert not psutil.pid_exists(part)


async def test_a_strangers_pid_is_never_taken_for_ours(stand: Stand) -> None:
    handle = await stand.runtime.start(stand.order(FOREVER))
    child = handle.record.child
    assert child is not None
    assert is_alive(child)
    assert not is_alive(child.model_copy(update={"started": child.started + 1}))
    assert not is_alive(child.model_copy(update={"boot_id": "another boot"}))
    await handle.stop(1)
    assert not is_alive(child)
    assert await stand.runtime.recover(handle.record) is None


@pytest.mark.parametrize("leaf", [True, False])
async def test_a_killed_shim_is_replaced_and_the_engine_lives_on(stand: Stand, leaf: bool) -> None:
    """Also where there are no control groups: what escaped is then found by its environment."""
    handle = await stand.runtime.start(stand.order(ESCAPING))
    await up(handle)
    escaped = psutil.Process(int(handle.record.log.read_text()))
    if not leaf:
        await asyncio.to_thread(leave_the_leaf, handle.record)
    records: list[HandleRecord] = []
    handle.watch_record(records.append)
    before = shim_of(handle)
    os.kill(before.pid, signal.SIGKILL)
    await eventually(lambda: records, 5, "another shim")
    assert records == [handle.record]
    assert handle.record.child is not None
    assert is_alive(handle.record.child)
    assert shim_of(handle) != before
    assert is_alive(shim_of(handle))
    again = await stand.runtime.recover(held_by(handle.record, before))
    assert again is not None
    handle.detach()
    ended = await again.stop(5)
    assert ended.signal in {15, None}
    assert ended.signal or "not known" in str(ended)
    assert over(escaped)


async def test_a_shim_and_its_engine_killed_together_leave_nothing(stand: Stand) -> None:
    handle = await stand.runtime.start(stand.order(ESCAPING))
    await up(handle)
    escaped = psutil.Process(int(handle.record.log.read_text()))
    assert handle.record.child is not None
    os.kill(shim_of(handle).pid, signal.SIGKILL)
    os.kill(handle.record.child.pid, signal.SIGKILL)
    assert (await handle.wait()).error == LOST
    assert over(escaped)
    assert not any(folder.exists() for folder in hold_of(handle.record).leaf)


async def test_what_dead_engines_left_is_cleared_by_the_next_start(stand: Stand) -> None:
    handle = await stand.runtime.start(stand.order(ESCAPING))
    await up(handle)
    escaped = psutil.Process(int(handle.record.log.read_text()))
    handle.detach()
    child = handle.record.child
    assert child is not None
    os.kill(shim_of(handle).pid, signal.SIGKILL)
    os.kill(child.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(child), 5, "the engine's end")
    assert (await stand.runtime.check()).usable
    assert over(escaped)
    assert not any(folder.exists() for folder in hold_of(handle.record).leaf)
    assert not handle.record.folder.exists()


async def test_children_get_a_private_tmpdir_that_goes_with_them(stand: Stand) -> None:
    code = "import os; print(os.environ['TMPDIR'], flush=True); import signal; signal.pause()"
    handle = await stand.runtime.start(stand.order(code))
    await up(handle)
    folder = Path(handle.record.log.read_text().strip())
    assert folder.stat().st_mode & 0o777 == 0o700
    await handle.stop(1)
    assert not folder.exists()
