"""A gateway of several processes: one port, one set of limits, and nobody's end is everybody's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.harness import ROOT, Room, clean_env, eventually, sample, until
from tests.integration.test_gateway_alone import alone
from tests.stage import FakeEngine
from tests.streams import check_stream, told

pytestmark = pytest.mark.slow


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The workers beside the first, those that serve already."""
    return [each for each in psutil.Process(process.pid).children() if each.is_running()]


def series(url: str, name: str, **labels: str) -> float:
    """A number of /metrics, asked over a connection of its own."""
    return sample(httpx.get(f"{url}/metrics", trust_env=False).text, name, labels)


def model_of(url: str) -> dict[str, Any]:
    """What /models tells of the only one."""
    told = httpx.get(f"{url}/models", trust_env=False).json()
    return dict(told["models"][0])


def runs(engine: FakeEngine, count: int) -> bool:
    """Whether the engine works on so many."""
    return bool(engine.stats()["running"] == count)


def clients_of(pid: int, url: str) -> int:
    """Open connections that one worker has accepted."""
    port = httpx.URL(url).port
    every = psutil.Process(pid).net_connections("tcp")
    return sum(each.laddr.port == port and each.status == "ESTABLISHED" for each in every)


def new_key(data: Path) -> str:
    """A key with five requests a minute."""
    made = subprocess.run(
        [sys.executable, "-m", "orchestrator", "keys", "create", "ann", "--rpm", "5", "--json",
         "--data-dir", str(data)],
        cwd=ROOT, env=clean_env(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(made.stdout)["key"])


async def ask(url: str, key: str = "-", tokens: int = 5) -> httpx.Response:
    """One request over a connection of its own: any worker may get it."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        body = {"prompt": "Hi", "max_new_tokens": tokens}
        given = {"authorization": f"Bearer {key}"}
        return await http.post(f"{url}/generate", json=body, headers=given)


async def events(url: str, tokens: int) -> list[str]:
    """A stream's events, up to its end, however that comes."""
    came: list[str] = []
    body = {"prompt": "Hi", "max_new_tokens": tokens}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        try:
            async with http.stream("POST", f"{url}/generate_stream", json=body) as got:
                async for line in got.aiter_lines():
                    came += [line[6:]] if line.startswith("data: ") else []
        except httpx.RemoteProtocolError:
            came.append("broken")
    return came


async def test_places_and_counters_are_those_of_all_workers_together() -> None:
    with alone("--gateway-workers", "3", "--places", "2") as (process, url, engine):
        await eventually(lambda: len(workers_of(process)) == 2, 10, "they are there")
        answers = await asyncio.gather(*(ask(url) for _ in range(24)))
        assert [each.status_code for each in answers] == [200] * 24
        assert engine.stats()["max_running"] == 2
        for _ in range(6):  # whoever of them is asked
            assert series(url, "engineroom_requests_total", code="200") == 24
            assert series(url, "engineroom_generated_tokens_total") == 24 * 5
            assert series(url, "engineroom_model_ready") == 1
            assert series(url, "engineroom_in_flight") == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert workers_gone(url)


def workers_gone(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False)
    except httpx.ConnectError:
        return True
    except httpx.ReadError:
        pass  # it stood in the line of one that has just left; others may be there
    return False


async def test_a_keys_requests_a_minute_are_counted_wherever_they_arrive(tmp_path: Path) -> None:
    key = await asyncio.to_thread(new_key, tmp_path)
    with alone("--gateway-workers", "3", ENGINEROOM_DATA_DIR=str(tmp_path)) as (process, url, _):
        await eventually(lambda: len(workers_of(process)) == 2, 10, "they are there")
        answers = await asyncio.gather(*(ask(url, key) for _ in range(30)))
        assert Counter(each.status_code for each in answers) == {200: 5, 429: 25}
        assert {each.json()["error"]["code"] for each in answers if each.status_code == 429} == {
            "requests_per_minute"
        }


async def test_a_killed_worker_costs_its_own_streams_and_is_replaced() -> None:
    with alone("--gateway-workers", "2", "--places", "100") as (process, url, engine):
        await eventually(lambda: len(workers_of(process)) == 1, 10, "it is there")
        mate = workers_of(process)[0]
        streams: list[asyncio.Task[list[str]]] = []

        while not clients_of(mate.pid, url) or not clients_of(process.pid, url):
            assert len(streams) < 100
            streams.extend(asyncio.create_task(events(url, 200)) for _ in range(4))
            await eventually(partial(runs, engine, len(streams)), 10, "they run")
        lost = clients_of(mate.pid, url)
        mate.kill()
        came = await asyncio.gather(*streams)
        broken = [each for each in came if each[-1] == "broken"]
        assert len(broken) == lost
        assert all(told(each[:-1]).after_end == 0 for each in broken)
        for whole in came:
            if whole[-1] != "broken":
                check_stream(whole, 200)
        await eventually(lambda: workers_of(process), 10, "it is replaced")
        assert workers_of(process)[0].pid != mate.pid
        await eventually(lambda: not engine.stats()["running"], 5, "the engine is idle")
        assert series(url, "engineroom_in_flight") == 0
        assert model_of(url)["in_flight"] == 0


async def test_counts_of_a_killed_worker_stay() -> None:
    with alone("--gateway-workers", "2") as (process, url, _):
        await eventually(lambda: len(workers_of(process)) == 1, 10, "it is there")
        mate = workers_of(process)[0]
        await asyncio.gather(*(ask(url) for _ in range(20)))
        before = series(url, "engineroom_requests_total", code="200")
        mate.kill()
        await eventually(lambda: workers_of(process) not in ([], [mate]), 10, "it is replaced")
        assert before == series(url, "engineroom_requests_total", code="200") == 20
        assert (await ask(url)).status_code == 200
        assert series(url, "engineroom_requests_total", code="200") == 21


async def test_a_worker_that_cannot_be_started_is_tried_again(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with alone("--gateway-workers", "2") as (process, url, _):
        await eventually(lambda: len(workers_of(process)) == 1, 10, "it is there")
        first, mate = psutil.Process(process.pid), workers_of(process)[0]
        limits = first.rlimit(psutil.RLIMIT_NOFILE)
        first.rlimit(psutil.RLIMIT_NOFILE, (first.num_fds(), limits[1]))
        mate.kill()
        await eventually(lambda: "could not be started" in capfd.readouterr().err, 10, "in vain")
        first.rlimit(psutil.RLIMIT_NOFILE, limits)
        await eventually(lambda: workers_of(process), 30, "there is another one")
        answers = await asyncio.gather(*(ask(url) for _ in range(16)))
        assert [each.status_code for each in answers] == [200] * 16


async def test_a_gateway_that_ends_takes_no_new_connections() -> None:
    with alone("--gateway-workers", "3") as (process, url, engine):
        await eventually(lambda: len(workers_of(process)) == 2, 10, "they are there")
        streams = [asyncio.create_task(events(url, 1000)) for _ in range(9)]
        await eventually(partial(runs, engine, 9), 10, "they run")
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: workers_gone(url), 2, "nobody listens")
        assert process.poll() is None
        for came in await asyncio.gather(*streams):
            assert told(came).errors == ("shutting_down",)


async def test_a_worker_that_stands_still_is_replaced_and_its_places_are_free() -> None:
    with alone("--gateway-workers", "2", "--places", "2") as (process, url, engine):
        await eventually(lambda: len(workers_of(process)) == 1, 10, "it is there")
        mate = workers_of(process)[0]
        mate.suspend()
        until(lambda: not psutil.pid_exists(mate.pid), 25, "it is taken for dead")
        await eventually(lambda: workers_of(process), 10, "it is replaced")
        answers = await asyncio.gather(*(ask(url) for _ in range(6)))
        assert [each.status_code for each in answers] == [200] * 6
        assert engine.stats()["max_running"] == 2


def test_without_its_first_worker_no_other_one_is_left() -> None:
    with alone("--gateway-workers", "3") as (process, url, _):
        until(lambda: len(workers_of(process)) == 2, 10, "they are there")
        pids = [each.pid for each in workers_of(process)]
        process.kill()
        process.wait()
        until(lambda: not any(map(psutil.pid_exists, pids)), 10, "all are gone")
        assert workers_gone(url)


def test_a_supervised_gateway_has_workers_too_and_is_adopted_with_them(
    make_room: Callable[..., Room],
) -> None:
    room = make_room("--tps", "20", gateway_workers=2).start()
    until(lambda: room.metric("engineroom_gateways_connected") == 2, 10, "both dial")
    gateway = room.engine("gateway-0")["pid"]
    with room.stream("Hi", max_new_tokens=40) as came:
        first = next(came)
        room.kill()
        check_stream([first, *came], 40)
    room.start()
    assert room.engine("gateway-0")["pid"] == gateway
    until(lambda: room.metric("engineroom_gateways_connected") == 2, 10, "both dial again")
    for _ in range(8):
        body = {"prompt": "Hi", "max_new_tokens": 2}
        assert httpx.post(f"{room.url}/generate", json=body, trust_env=False).status_code == 200
    os.kill(gateway, signal.SIGKILL)
    until(lambda: room.engine("gateway-0")["pid"] != gateway, 15, "the gateway is replaced")
    until(lambda: room.metric("engineroom_gateways_connected") == 2, 15, "with both")
    assert room.stop() == 0
    assert room.processes() == []
