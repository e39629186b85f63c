"""Every runtime keeps the same promises, shown with a real child."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from engine_launchers.base import CrashCause, ExitResult
from engine_launchers.diagnosing import diagnosed
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import HandleRecord
from tests.containers import over
from tests.contract.stands import (
    COUNTING,
    ESCAPING,
    FOREVER,
    LOSING,
    Stand,
    docker_stand,
    lines_of,
    process_stand,
    tree,
    up,
)
from tests.harness import eventually, look, within

CONTAINERS = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(params=["process", pytest.param("docker", marks=CONTAINERS)])
async def stand(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stand]:
    if request.param == "process":
        made = process_stand(tmp_path)
    else:
        engine = request.getfixturevalue("docker_engine")
        made = docker_stand(tmp_path, engine, request.getfixturevalue("python_image"))
    async with made as stand:
        yield stand


async def test_it_is_usable_here(stand: Stand) -> None:
    assert (await stand.runtime.check()).usable


@pytest.mark.parametrize("code", [0, 3])
async def test_an_exit_code_is_told_to_everybody_who_waits(stand: Stand, code: int) -> None:
    handle = await stand.runtime.start(stand.order(f"raise SystemExit({code})"))
    answers = await asyncio.gather(*(handle.wait() for _ in range(3)))
    assert answers == [ExitResult(code=code)] * 3
    assert await handle.stop(1) == ExitResult(code=code)


async def test_a_signal_is_told(stand: Stand) -> None:
    handle = await stand.runtime.start(stand.order(FOREVER))
    await up(handle)
    assert handle.record.child is not None
    os.kill(handle.record.child.pid, signal.SIGKILL)
    assert await handle.wait() == ExitResult(signal=9)


async def test_stopping_twice_is_stopping_once(stand: Stand) -> None:
    handle = await stand.runtime.start(stand.order(FOREVER))
    await up(handle)
    both = await asyncio.gather(handle.stop(5), handle.stop(5))
    assert list(both) == [ExitResult(signal=15)] * 2


async def test_term_ignored_is_kill_after_the_grace(stand: Stand) -> None:
    ignoring = "import signal; signal.signal(15, signal.SIG_IGN); " + FOREVER
    handle = await stand.runtime.start(stand.order(ignoring))
    await up(handle)
    assert await handle.stop(0.2) == ExitResult(signal=9)


async def test_a_term_that_was_swallowed_is_followed_by_another(stand: Stand) -> None:
    """As vLLM does while it starts. It listens, and that is known for its own."""
    handle = await stand.runtime.start(stand.engine("--swallow-terms", "1"))
    await up(handle)
    at = handle.record.reached
    assert at is not None
    assert await handle.owns(at.host, at.port)
    with within(3.5, "the second one ends it"):
        assert await handle.stop(4) == ExitResult(signal=15)


async def test_it_answers_where_its_record_says(stand: Stand) -> None:
    handle = await stand.runtime.start(stand.engine())
    at = handle.record.reached
    assert at is not None

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return look(f"{at.base_url}/health").status_code == 200
        return False

    await eventually(answers, 20, "an answer")
    await handle.stop(2)


async def test_memory_beyond_the_limit_is_named_as_the_cause(stand: Stand) -> None:
    eater = "print('up', flush=True)\neaten = []\nwhile True: eaten.append(b'x' * (1 << 20))"
    handle = await stand.runtime.start(stand.order(eater, memory_max=64 << 20))
    exit = await handle.wait()
    assert exit == ExitResult(signal=9, oom_killed=True)
    assert diagnosed(exit, [], ()) is CrashCause.HOST_OOM


async def test_a_child_killed_for_memory_is_the_cause_where_the_end_follows(stand: Stand) -> None:
    """As vLLM ends when it has lost a worker."""
    handle = await stand.runtime.start(stand.order(LOSING + "sys.exit(5)", memory_max=64 << 20))
    exit = await handle.wait()
    assert exit == ExitResult(code=5, oom_killed=True)
    assert diagnosed(exit, [], ()) is CrashCause.HOST_OOM


async def test_nothing_of_the_tree_survives_even_what_left_its_session(stand: Stand) -> None:
    handle = await stand.runtime.start(stand.order(ESCAPING))
    await up(handle)
    everything = tree(handle)
    assert len(everything) >= 2
    await handle.stop(0.2)
    assert all(over(each) for each in everything)


async def test_a_program_that_is_not_there_is_a_launch_failure(stand: Stand) -> None:
    spec = stand.spec().model_copy(update={"argv": ("/does/not/exist",)})
    record = stand.runtime.record("child", 1, spec)
    with pytest.raises(LaunchFailed, match="No such file"):
        await stand.runtime.start(record)


async def test_it_is_found_again_by_its_record_alone(stand: Stand) -> None:
    record = stand.order(FOREVER)
    first = await stand.runtime.start(record)
    await up(first)
    first.detach()
    stored = HandleRecord.model_validate_json(record.model_dump_json())
    second = await stand.runtime.recover(stored)
    assert second is not None
    assert second.record.child == first.record.child
    assert await second.stop(1) == ExitResult(signal=15)


async def test_a_record_without_a_process_is_nothing(stand: Stand) -> None:
    assert await stand.runtime.recover(stand.order(FOREVER, generation=9)) is None


async def test_what_runs_and_cannot_be_used_is_ended_and_nothing(stand: Stand) -> None:
    first = await stand.runtime.start(stand.engine())
    await up(first)
    everything = [*tree(first)]
    first.detach()
    stand.cut_off(first)
    assert await stand.runtime.recover(first.record) is None
    assert all(over(each) for each in everything)


async def test_logs_rotate_and_stay_bounded(stand: Stand) -> None:
    flood = "import sys, time\nwhile True: print('x' * 1000, flush=True); time.sleep(0.0005)"
    handle = await stand.runtime.start(stand.order(flood))
    log = handle.record.log
    await eventually(log.with_suffix(".log.2").exists, 30, "two rotations")
    await handle.stop(1)
    assert len(list(log.parent.iterdir())) <= 3


async def test_the_last_words_are_in_the_log_when_the_end_is_told(stand: Stand) -> None:
    code = "import sys; print('first'); sys.exit('the reason')"
    handle = await stand.runtime.start(stand.order(code))
    assert await handle.wait() == ExitResult(code=1)
    assert set(handle.record.log.read_text().split("\n")) == {"first", "the reason", ""}


async def test_what_it_says_while_nobody_holds_it_is_in_the_log_once(stand: Stand) -> None:
    first = await stand.runtime.start(stand.order(COUNTING))
    await eventually(lambda: len(lines_of(first)) > 100, 20, "a hundred lines")
    first.detach()
    seen = len(lines_of(first))
    second = await stand.runtime.recover(first.record)
    assert second is not None
    await eventually(lambda: len(lines_of(first)) > seen + 200, 20, "more lines")
    await second.stop(1)
    assert lines_of(first) == [str(n) for n in range(len(lines_of(first)))]
