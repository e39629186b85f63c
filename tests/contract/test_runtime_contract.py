"""Every runtime keeps the same promises, shown with a real child."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from engine_launchers.base import CrashCause, ExitResult, LaunchSpec
from engine_launchers.diagnosing import diagnosed
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import Handle, HandleRecord, Identity
from orchestrator.runtimes.handle import LOST
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime, is_alive
from orchestrator.runtimes.remains import hold_of, leaf_of
from tests.harness import (
    eventually,
    free_ports,
    processes_of,
    remove_leaves,
    watched_by,
    within,
)

ENGINE = Path(__file__).parents[1] / "fakes" / "engine.py"
Starter = Callable[..., HandleRecord]


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[ProcessRuntime]:
    (tmp_path / "logs").mkdir()
    sockets = Path("/tmp") / f"er-{os.getpid()}-{abs(hash(str(tmp_path))) % 10**6}"
    sockets.mkdir()
    options = ProcessOptions(
        folder=tmp_path / "instances",
        logs=tmp_path / "logs",
        sockets=sockets,
        lease_s=30,
        grace_s=1,
        log_max_bytes=65_536,
        log_files=2,
    )
    yield ProcessRuntime(options, os.environ)
    for each in processes_of(str(tmp_path)):
        each.kill()
    shutil.rmtree(sockets)
    assert remove_leaves(tmp_path) == []


def order(runtime: ProcessRuntime, code: str, generation: int = 1) -> HandleRecord:
    """The record of a small Python program."""
    spec = LaunchSpec(argv=(sys.executable, "-c", code))
    return runtime.record("child", generation, spec)


FOREVER = "import signal, sys; print('up', flush=True); signal.pause()"


async def up(handle: Handle) -> None:
    """Wait until the child printed its first line."""
    log = handle.record.log
    await eventually(lambda: log.exists() and "\n" in log.read_text(), 20, "the first line")


async def test_it_is_usable_here(runtime: ProcessRuntime) -> None:
    assert (await runtime.check()).usable


@pytest.mark.parametrize("code", [0, 3])
async def test_an_exit_code_is_told_to_everybody_who_waits(
    runtime: ProcessRuntime, code: int
) -> None:
    handle = await runtime.start(order(runtime, f"raise SystemExit({code})"))
    answers = await asyncio.gather(*(handle.wait() for _ in range(3)))
    assert answers == [ExitResult(code=code)] * 3
    assert await handle.stop(1) == ExitResult(code=code)


async def test_a_signal_is_told(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(order(runtime, FOREVER))
    await up(handle)
    assert handle.record.child is not None
    os.kill(handle.record.child.pid, signal.SIGKILL)
    assert await handle.wait() == ExitResult(signal=9)


async def test_stopping_twice_is_stopping_once(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(order(runtime, FOREVER))
    await up(handle)
    both = await asyncio.gather(handle.stop(5), handle.stop(5))
    assert list(both) == [ExitResult(signal=15)] * 2


async def test_term_ignored_is_kill_after_the_grace(runtime: ProcessRuntime) -> None:
    ignoring = "import signal; signal.signal(15, signal.SIG_IGN); " + FOREVER
    handle = await runtime.start(order(runtime, ignoring))
    await up(handle)
    assert await handle.stop(0.2) == ExitResult(signal=9)


ESCAPING = (
    "import os, signal, sys\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True)\n"
    "        signal.pause()\n"
    "    os._exit(0)\n"
    "signal.pause()\n"
)


def shim_of(handle: Handle) -> Identity:
    """The identity of a handle's shim."""
    shim = hold_of(handle.record).shim
    assert shim is not None
    return shim


def held_by(record: HandleRecord, shim: Identity) -> HandleRecord:
    """The record with another shim."""
    hold = hold_of(record).model_copy(update={"shim": shim})
    return record.model_copy(update={"hold": hold})


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; process 1 may take its time to take note."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def leave_the_leaf(record: HandleRecord) -> None:
    """Undo the control groups of an engine, as on a system that lets us make none."""
    for folder in hold_of(record).leaf:
        above = folder.parent / "cgroup.procs"
        for pid in (folder / "cgroup.procs").read_text().split():
            above.write_text(pid)
    assert leaf_of(record).remove()
    (record.folder / "leaf.json").unlink()


async def test_a_term_that_was_swallowed_is_followed_by_another(runtime: ProcessRuntime) -> None:
    """As vLLM does while it starts. It listens, and that is known for its own."""
    port = free_ports(1)[0]
    argv = (sys.executable, str(ENGINE), "--port", str(port), "--swallow-terms", "1")
    handle = await runtime.start(runtime.record("child", 1, LaunchSpec(argv=argv)))
    await up(handle)
    assert await handle.owns("127.0.0.1", port)
    with within(3.5, "the second one ends it"):
        assert await handle.stop(4) == ExitResult(signal=15)


async def test_memory_beyond_the_limit_is_named_as_the_cause(runtime: ProcessRuntime) -> None:
    eater = "print('up', flush=True)\neaten = []\nwhile True: eaten.append(b'x' * (1 << 20))"
    spec = LaunchSpec(argv=(sys.executable, "-c", eater), memory_max=64 << 20)
    handle = await runtime.start(runtime.record("child", 1, spec))
    exit = await handle.wait()
    assert exit == ExitResult(signal=9, oom_killed=True)
    assert diagnosed(exit, [], ()) is CrashCause.HOST_OOM


async def test_nothing_of_the_tree_survives_even_what_left_its_session(
    runtime: ProcessRuntime,
) -> None:
    handle = await runtime.start(order(runtime, ESCAPING))
    await up(handle)
    grandchild = psutil.Process(int(handle.record.log.read_text()))
    await handle.stop(0.2)
    assert gone(grandchild)


async def engine_with_a_part(runtime: ProcessRuntime, *knobs: str) -> tuple[Handle, int]:
    """The fake engine with a vital child that the shim has had time to find; the child's pid."""
    argv = (sys.executable, str(ENGINE), "--port", "0", "--vital-child", "FAKE::Worker_1", *knobs)
    handle = await runtime.start(
        runtime.record("child", 1, LaunchSpec(argv=argv, vital=("FAKE::Worker",)))
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


async def test_the_end_of_a_vital_descendant_is_the_end_of_all(runtime: ProcessRuntime) -> None:
    handle, part = await engine_with_a_part(runtime, "--ignore-sigterm")
    with within(2, "all of it ends"):
        os.kill(part, signal.SIGKILL)
        exit = await handle.wait()
    assert exit.part == f"FAKE::Worker_1 ({part})"
    assert exit.signal in {9, None}  # its parent may have taken its status before the shim read it
    assert str(exit).startswith(f"its FAKE::Worker_1 ({part}) ended")
    assert handle.record.child is not None
    assert not is_alive(handle.record.child)


async def test_an_engine_that_ends_its_own_parts_says_why_itself(runtime: ProcessRuntime) -> None:
    handle, part = await engine_with_a_part(runtime, "--graceful-exit-0")
    os.kill(part, signal.SIGTERM)
    assert handle.record.child is not None
    os.kill(handle.record.child.pid, signal.SIGTERM)
    assert await handle.wait() == ExitResult(code=0)


async def test_a_stop_that_was_asked_for_is_no_lost_part(runtime: ProcessRuntime) -> None:
    handle, part = await engine_with_a_part(runtime, "--graceful-exit-0")
    assert await handle.stop(5) == ExitResult(code=0)
    assert not psutil.pid_exists(part)


async def test_a_program_that_is_not_there_is_a_launch_failure(runtime: ProcessRuntime) -> None:
    record = runtime.record("child", 1, LaunchSpec(argv=("/does/not/exist",)))
    with pytest.raises(LaunchFailed, match="No such file"):
        await runtime.start(record)


async def test_it_is_found_again_by_its_record_alone(runtime: ProcessRuntime) -> None:
    record = order(runtime, FOREVER)
    first = await runtime.start(record)
    await up(first)
    first.detach()
    stored = HandleRecord.model_validate_json(record.model_dump_json())
    second = await runtime.recover(stored)
    assert second is not None
    assert second.record.child == first.record.child
    assert await second.stop(1) == ExitResult(signal=15)


async def test_a_strangers_pid_is_never_taken_for_ours(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(order(runtime, FOREVER))
    child = handle.record.child
    assert child is not None
    assert is_alive(child)
    assert not is_alive(child.model_copy(update={"started": child.started + 1}))
    assert not is_alive(child.model_copy(update={"boot_id": "another boot"}))
    await handle.stop(1)
    assert not is_alive(child)
    assert await runtime.recover(handle.record) is None


async def test_a_record_without_a_process_is_nothing(runtime: ProcessRuntime) -> None:
    assert await runtime.recover(order(runtime, FOREVER, generation=9)) is None


@pytest.mark.parametrize("leaf", [True, False])
async def test_a_killed_shim_is_replaced_and_the_engine_lives_on(
    runtime: ProcessRuntime, leaf: bool
) -> None:
    """Also where there are no control groups: what escaped is then found by its environment."""
    handle = await runtime.start(order(runtime, ESCAPING))
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
    again = await runtime.recover(held_by(handle.record, before))
    assert again is not None
    handle.detach()
    ended = await again.stop(5)
    assert ended.signal in {15, None}
    assert ended.signal or "not known" in str(ended)
    assert gone(escaped)


async def test_a_shim_and_its_engine_killed_together_leave_nothing(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(order(runtime, ESCAPING))
    await up(handle)
    escaped = psutil.Process(int(handle.record.log.read_text()))
    assert handle.record.child is not None
    os.kill(shim_of(handle).pid, signal.SIGKILL)
    os.kill(handle.record.child.pid, signal.SIGKILL)
    assert (await handle.wait()).error == LOST
    assert gone(escaped)
    assert not any(folder.exists() for folder in hold_of(handle.record).leaf)


async def test_what_dead_engines_left_is_cleared_by_the_next_start(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(order(runtime, ESCAPING))
    await up(handle)
    escaped = psutil.Process(int(handle.record.log.read_text()))
    handle.detach()
    child = handle.record.child
    assert child is not None
    os.kill(shim_of(handle).pid, signal.SIGKILL)
    os.kill(child.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(child), 5, "the engine's end")
    assert (await runtime.check()).usable
    assert gone(escaped)
    assert not any(folder.exists() for folder in hold_of(handle.record).leaf)
    assert not handle.record.folder.exists()


async def test_logs_rotate_and_stay_bounded(runtime: ProcessRuntime) -> None:
    flood = "import sys, time\nwhile True: print('x' * 1000, flush=True); time.sleep(0.0005)"
    handle = await runtime.start(order(runtime, flood))
    log = handle.record.log
    await eventually(log.with_suffix(".log.2").exists, 30, "two rotations")
    await handle.stop(1)
    assert len(list(log.parent.iterdir())) <= 3


async def test_children_get_a_private_tmpdir_that_goes_with_them(runtime: ProcessRuntime) -> None:
    code = "import os; print(os.environ['TMPDIR'], flush=True); import signal; signal.pause()"
    handle = await runtime.start(order(runtime, code))
    await up(handle)
    folder = Path(handle.record.log.read_text().strip())
    assert folder.stat().st_mode & 0o777 == 0o700
    await handle.stop(1)
    assert not folder.exists()
