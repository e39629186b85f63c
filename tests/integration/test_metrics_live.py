"""The table of metrics is what is really exported; engines are asked within bounds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from engine_launchers.series import SeriesRule
from orchestrator.observability.control_metrics import ControlMetrics
from orchestrator.observability.engine_metrics import Figures
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.normalizing import normalize
from orchestrator.supervision.scraping import MOST_BYTES, Scraper
from orchestrator.supervision.workloads import EngineWorkload
from tests.conftest import RoomMaker
from tests.fakes.launcher import WATCH
from tests.harness import ROOT, Room, sample, until

TABLE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(engineroom_[a-z0-9_]+)` \| (counter|gauge|histogram) \|", re.MULTILINE)
MACHINE = (
    "engineroom_host_disk_free_bytes", "engineroom_device_memory_bytes",
    "engineroom_device_memory_free_bytes", "engineroom_device_memory_spare_bytes",
)  # fmt: skip


def documented() -> tuple[dict[str, str], dict[str, str]]:
    """Name to kind, of the gateway's table and of the control plane's."""
    gateway, control = TABLE.split("## Control plane")
    return dict(ROW.findall(gateway)), dict(ROW.findall(control))


def exported(text: str) -> dict[str, str]:
    """Name to kind of what an exposition declares; whatever has a sample has to be declared."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name = re.split(r"[{ ]", line, maxsplit=1)[0]
            assert {name, re.sub(r"_(bucket|count|sum)$", "", name)} & kinds.keys(), line
    return kinds


@pytest.mark.parametrize("workers", [1, 2])
def test_every_metric_of_the_table_is_there_and_the_other_way_round(
    make_room: RoomMaker, workers: int
) -> None:
    room = make_room("--tps", "500", gateway_workers=workers, engine_metrics_interval_s=0.2)
    room.start()
    room.http.post(f"{room.url}/generate", json={"prompt": "Hi", "max_new_tokens": 5})
    gateway, control = documented()
    assert exported(room.http.get(f"{room.url}/metrics").text) == gateway
    assert exported(room.admin("GET", "/metrics").text) == control
    assert len(gateway) > 20
    assert len(control) > 40
    if workers == 1:
        a_control_plane_shows(room)


def a_control_plane_shows(room: Room) -> None:
    """What a server with one engine has to say."""
    text = room.admin("GET", "/metrics").text
    for name in MACHINE:
        assert sample(text, name, {}) > 0, name
    assert sample(text, "engineroom_engine_starts_total", {"replica": "demo-0"}) == 1
    spent = sample(text, "engineroom_engine_load_seconds_total", {"replica": "demo-0"})
    took = sample(text, "engineroom_engine_start_seconds_sum", {"replica": "demo-0"})
    assert spent == pytest.approx(took, abs=0.01)
    assert sample(text, "engineroom_ledger_planned_bytes", {"replica": "demo-0"}) > 0
    labels = {"model": "demo", "engine": "llama_cpp", "replica": "demo-0"}
    assert sample(text, "engineroom_engine_info", labels) == 1
    for reason in ("idle", "asleep", "room"):
        assert f'engineroom_model_evictions_total{{model="demo",reason="{reason}"}} 0.0' in text

    def tokens() -> bool:
        return room.metric("engineroom_engine_generated_tokens_total", **labels) >= 5

    until(tokens, 5, "the engine was asked for what it counts")
    assert room.metric("engineroom_engine_scrapes_total", replica="demo-0", result="ok") >= 1


def test_an_idle_model_that_leaves_is_counted(make_room: RoomMaker) -> None:
    room = make_room("--tps", "500", ttl_s=0.2).start()
    room.http.post(f"{room.url}/generate", json={"prompt": "Hi", "max_new_tokens": 1})
    left = "engineroom_model_evictions_total"
    until(lambda: room.metric(left, model="demo", reason="idle") == 1, 10, "it is counted")
    until(
        lambda: "generated_tokens_total{" not in room.admin("GET", "/metrics").text,
        5,
        "nothing is said of what does not run",
    )


# --- bounds: the engine's side is a socket that does what the test says ---------------------------

Answer = Callable[[asyncio.StreamWriter], Any]


class FakeInstance:
    """As much of an instance as the scraper looks at."""

    def __init__(self, port: int) -> None:
        plan = SimpleNamespace(engine="llama_cpp")
        self.workload = object.__new__(EngineWorkload)
        self.workload.plan = cast(Any, plan)
        self.workload.order = cast(Any, SimpleNamespace(name="m"))
        self.workload._launchers = cast(Any, {"llama_cpp": SimpleNamespace(watch=WATCH)})
        self.name, self.base_url = "m-0", f"http://127.0.0.1:{port}"
        self.lifecycle = lc.Lifecycle(generation=1, state=lc.State.READY)


@asynccontextmanager
async def scraped(answer: Answer) -> AsyncIterator[tuple[Scraper, FakeInstance, ControlMetrics]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    metrics, engine = ControlMetrics(), FakeInstance(server.sockets[0].getsockname()[1])
    async with httpx.AsyncClient(trust_env=False) as client:
        engines = [cast(Instance, engine)]
        yield Scraper(lambda: engines, metrics, client, 15, 0.3), engine, metrics
    server.close()


def result(metrics: ControlMetrics, word: str) -> float:
    labels = {"replica": "m-0", "result": word}
    return sample(metrics.render().decode(), "engineroom_engine_scrapes_total", labels)


async def test_an_engine_that_says_too_much_is_cut_off() -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 64 * MOST_BYTES:
            writer.write(b"fake_tokens_total 1\n" * 3000)
            sent += 60_000
            await writer.drain()

    async with scraped(endless) as (scraper, _, metrics):
        await scraper.look()
        assert result(metrics, "too_large") + result(metrics, "slow") == 1
        assert sent < 32 * MOST_BYTES
        assert scraper.told() == []


async def test_an_engine_that_says_nothing_costs_its_limit_and_no_more() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with scraped(silent) as (scraper, _, metrics):
        began = asyncio.get_running_loop().time()
        await scraper.look()
        assert asyncio.get_running_loop().time() - began < 5
        assert result(metrics, "slow") == 1


async def test_an_error_or_a_connection_that_breaks_is_a_failure() -> None:
    said = [
        b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
    ]

    async def broken(writer: asyncio.StreamWriter) -> None:
        writer.write(said.pop())
        await writer.drain()

    async with scraped(broken) as (scraper, _, metrics):
        await scraper.look()
        await scraper.look()
        assert result(metrics, "failed") == 2


async def test_a_fault_of_ours_with_one_engine_is_no_other_engines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def saying(number: int) -> Answer:
        async def answer(writer: asyncio.StreamWriter) -> None:
            head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
            writer.write(head + b"fake_tokens_total %d\n" % number)
            await writer.drain()

        return answer

    def normal(text: str, rules: Sequence[SeriesRule]) -> Figures:
        if "666" in text:
            raise KeyError("not thought of")
        return normalize(text, rules)

    def faults() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]

    monkeypatch.setattr("orchestrator.supervision.scraping.normalize", normal)
    async with scraped(saying(666)) as (scraper, engine, metrics), scraped(saying(7)) as others:
        other = others[1]
        other.name = "n-0"
        scraper._engines = lambda: [cast(Instance, engine), cast(Instance, other)]
        await scraper.look()
        await scraper.look()
        assert [told.replica for told in scraper.told()] == ["n-0"]
        assert result(metrics, "failed") == 2
        assert ["m-0" in each for each in faults()] == [True]
        engine.lifecycle = lc.Lifecycle(generation=2, state=lc.State.READY)
        await scraper.look()
        assert len(faults()) == 2


async def test_what_was_said_stands_while_the_same_process_serves() -> None:
    said = [b"", b"fake_tokens_total 7\n"]

    async def once(writer: asyncio.StreamWriter) -> None:
        text = said.pop()
        status = b"200 OK" if text else b"500 Oh"
        head = b"HTTP/1.1 %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        writer.write(head % (status, len(text)) + text)
        await writer.drain()

    async with scraped(once) as (scraper, engine, metrics):
        await scraper.look()
        (told,) = scraper.told()
        assert told.figures.numbers["generated_tokens_total"] == {"": 7}
        assert (told.model, told.engine, told.replica) == ("m", "llama_cpp", "m-0")
        await scraper.look()
        assert result(metrics, "failed") == 1
        assert scraper.told() == [told]
        engine.lifecycle = lc.Lifecycle(generation=2, state=lc.State.READY)
        assert scraper.told() == []
        engine.lifecycle = lc.Lifecycle(generation=1, state=lc.State.SLEEPING)
        assert scraper.told() == []
