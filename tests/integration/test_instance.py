"""One instance over the fake engine, without supervisor and gateway: sleep, canaries, starts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine_launchers.base import EngineName, EnginePlan, Tuning
from orchestrator.errors import EngineMissing
from orchestrator.models.gguf_spec import model_spec
from orchestrator.resources import demo_dir
from orchestrator.runtimes.base import HandleRecord
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.instance import Change, Hooks, Instance
from orchestrator.supervision.lifecycle import State as S
from orchestrator.supervision.orders import ModelOrder
from orchestrator.supervision.probing import ProbeTimes
from orchestrator.supervision.workloads import EngineWorkload
from tests.fakes.launcher import FakeLauncher
from tests.harness import SLACK

PLAN = EnginePlan(
    id="x", engine="llama_cpp", engine_version="fake", tier="CPU_ONLY",
    model=model_spec(demo_dir() / "demo.Q4_K_M.gguf", "demo"),
    tuning=Tuning(max_model_len=2048, max_concurrency=4),
)  # fmt: skip


async def no_other(order: ModelOrder, tried: frozenset[EngineName]) -> ModelOrder:
    raise EngineMissing("there is no other engine")


class Life:
    """An instance, the states it went through, and questions to its engine."""

    def __init__(self, folder: Path, http: httpx.AsyncClient, *knobs: str, **times: float) -> None:
        options = ProcessOptions(
            folder=folder / "i", logs=folder, sockets=folder, lease_s=60, grace_s=2,
            log_max_bytes=1 << 20, log_files=1,
        )  # fmt: skip
        launcher = FakeLauncher(knobs, serial=False)
        order = ModelOrder(PLAN, "wish", sys.executable)
        work = EngineWorkload("e", PLAN, order, {"llama_cpp": launcher}, no_other, http)
        self.states: list[S] = []
        self.record: HandleRecord | None = None
        self.http = http
        self.room = asyncio.Event()
        self.room.set()
        self.instance = Instance(
            work,
            ProcessRuntime(options, os.environ),
            lc.Policy(stop_grace_s=1, half_open_s=None),
            ProbeTimes(**{"interval_s": 0.2, "timeout_s": 1, "start_stall_s": 30, **times}),
            Hooks(self.admit, self.changed, self.saved, lambda _: None),
        )

    async def admit(self, _: Instance) -> None:
        """Room for everybody, as long as it is said that there is."""
        await self.room.wait()

    def saved(self, _: Instance, record: HandleRecord) -> None:
        self.record = record

    def changed(self, _: Instance, change: Change) -> None:
        self.states.append(change.new)

    async def to(self, state: S, *events: lc.Event) -> lc.Lifecycle:
        """Post, and wait for a state."""
        for event in events:
            self.instance.post(event)
        async with asyncio.timeout(20 * SLACK):
            await self.instance.wait_for(frozenset({state}))
        return self.instance.lifecycle

    async def stats(self) -> dict[str, Any]:
        answer = await self.http.get(f"{self.instance.base_url}/stats")
        return dict(answer.json())


@asynccontextmanager
async def running(
    folder: Path, *knobs: str, first: S = S.READY, **times: float
) -> AsyncIterator[Life]:
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_keepalive_connections=0)
        http = await stack.enter_async_context(httpx.AsyncClient(limits=limits, trust_env=False))
        life = Life(folder, http, *knobs, **times)
        owner = asyncio.create_task(life.instance.run())
        try:
            await life.to(first, lc.Start())
            yield life
        finally:
            await life.to(S.STOPPED, lc.Stop(0))
            owner.cancel()
            await asyncio.gather(owner, return_exceptions=True)


async def test_it_sleeps_wakes_and_is_the_same_process(tmp_path: Path) -> None:
    async with running(tmp_path, "--can-sleep") as life:
        handle = life.instance.running
        g = life.instance.lifecycle.generation
        await life.to(S.DRAINING, lc.Sleep(30, 1))
        await life.to(S.SLEEPING, lc.Idle(g))
        assert (await life.stats())["asleep"] == 1
        await life.to(S.READY, lc.Start())
        assert (await life.stats())["asleep"] == 0
        assert life.instance.running is handle
        assert life.states[-4:] == [S.DRAINING, S.SLEEPING, S.STARTING, S.READY]


async def test_a_later_supervisor_finds_it_asleep(tmp_path: Path) -> None:
    async with running(tmp_path, "--can-sleep") as life:
        await life.to(S.SLEEPING, lc.Sleep(0, 1))
        other = Life(tmp_path, life.http, "--can-sleep")
        assert life.record is not None
        assert life.record.asleep == 1
        owner = asyncio.create_task(other.instance.run())
        assert await other.instance.adopt(life.record)
        now = await other.to(S.SLEEPING)
        assert (now.generation, now.level) == (1, 1)
        await other.to(S.READY, lc.Start())
        assert other.record is not None
        assert other.record.asleep is None
        await other.to(S.STOPPED, lc.Stop(0))
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)


async def test_what_cannot_sleep_stops_and_what_cannot_wake_is_launched_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, "--can-sleep", "--sleep-status", "500") as life:
        now = await life.to(S.STOPPED, lc.Sleep(0, 1))
        assert now.why == "could not sleep: /sleep?level=1: HTTP 500"
    async with running(tmp_path) as life:
        now = await life.to(S.STOPPED, lc.Sleep(0, 1))
        assert now.why == "could not sleep: llama_cpp cannot sleep at level 1"
    async with running(tmp_path, "--can-sleep", "--wake-status", "500") as life:
        await life.to(S.SLEEPING, lc.Sleep(0, 1))
        now = await life.to(S.READY, lc.Start())
        assert (now.generation, len(now.failures)) == (2, 1)


async def test_a_canary_tells_broken_requests_from_a_broken_engine(tmp_path: Path) -> None:
    async with running(tmp_path, hang_s=0.8) as life:
        handle = life.instance.running
        assert handle is not None
        assert handle.record.child is not None
        broken = [lc.RequestFailed(1, "broke")] * 5
        await life.to(S.SUSPECT, *broken)
        now = await life.to(S.READY)
        assert (now.generation, now.stall) == (1, None)
        os.kill(handle.record.child.pid, signal.SIGUSR2)
        await life.to(S.STOPPING, *broken)
        now = await life.to(S.READY)
        assert now.generation == 2
        assert now.cause is not None
        assert now.cause.value == "unresponsive"


async def test_a_server_that_answers_and_never_makes_a_token_does_not_start(tmp_path: Path) -> None:
    """What it logs about our own canaries is no progress."""
    knobs = ("--status", "500")
    async with running(tmp_path, *knobs, first=S.STOPPING, start_stall_s=0.8) as life:
        now = life.instance.lifecycle
        assert now.cause is not None
        assert (now.cause.value, now.stall) == ("start_stalled", "start")


@pytest.mark.parametrize("steps", [*range(10), 20])
async def test_a_stop_during_a_launch_is_never_lost(tmp_path: Path, steps: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        life = Life(tmp_path, http)
        life.room.clear()  # it would wait for ever
        owner = asyncio.create_task(life.instance.run())
        life.instance.post(lc.Start())
        for _ in range(steps):
            await asyncio.sleep(0)
        life.instance.post(lc.Stop(0))
        async with asyncio.timeout(20 * SLACK):
            await life.instance.wait_until(lambda _: life.states[-1:] == [S.STOPPED])
        assert life.record is None  # nothing was launched
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)
