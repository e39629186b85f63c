"""Traces go to a collector over a socket, the engine is told whose request it works on, and a
collector in trouble is nobody else's."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from types import FrameType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from orchestrator.errors import ConfigError
from orchestrator.gateway.app import Gateway
from orchestrator.observability.extras import check_tracing
from orchestrator.observability.plain import PlainCounter
from orchestrator.observability.tracing import Tracing
from tests.collector import attributes, collecting
from tests.conftest import RoomMaker
from tests.harness import SLACK, eventually, free_ports, until
from tests.integration.test_hot_path import Engine, ask, between, counted, whole
from tests.stage import staged

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: vendor=1\r\n"


async def closed(gateway: Gateway) -> None:
    assert gateway.witness is not None
    await gateway.witness.close()


def told(head: bytes) -> tuple[str, str, bool]:
    """Trace, parent and whether it is recorded, as the engine was told."""
    found = re.search(rb"\r\ntraceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\r\n", head)
    assert found is not None, head
    return found[1].decode(), found[2].decode(), bool(int(found[3], 16) & 1)


async def test_a_request_is_a_trace_and_the_engine_is_part_of_it() -> None:
    with collecting() as collector:
        async with between(whole, otlp_endpoint=collector.url) as (engine, port, gateway):
            await ask(port, 1, more=GIVEN + "x-request-id: mine-1\r\n")
            await ask(port, 1, stream=True)
            await eventually(lambda: len(collector.spans) == 4, 10, "both traces are there")
            await closed(gateway)
            text = gateway.metrics.render().decode()
            assert 'engineroom_spans_total{result="made"} 4.0' in text
            assert 'engineroom_spans_total{result="sent"} 4.0' in text
    assert collector.paths == {"/v1/traces"}
    assert collector.resource["service.name"] == "engineroom-gateway"
    server, other = collector.named("POST /v1/completions")
    (call, _) = collector.named("engine")
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.parent_span_id == server.span_id
    assert told(engine.heads[0]) == (TRACE, call.span_id.hex(), True)
    assert b"\r\ntracestate: vendor=1\r\n" in engine.heads[0]
    assert told(engine.heads[1])[0] == other.trace_id.hex() != TRACE
    assert other.parent_span_id == b""
    said = attributes(server)
    assert said["engineroom.request_id"] == "mine-1"
    assert said["http.response.status_code"] == 200
    assert (said["gen_ai.request.model"], said["gen_ai.usage.output_tokens"]) == ("m", 3)
    assert said["engineroom.ttft_s"] > 0
    assert attributes(call)["engineroom.replica"] == "m-0"
    assert server.start_time_unix_nano <= call.start_time_unix_nano
    assert call.end_time_unix_nano <= server.end_time_unix_nano


@pytest.mark.parametrize(
    "given", ["zz", "00-0-0-00", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "é" * 50]
)
async def test_a_traceparent_that_makes_no_sense_begins_a_trace(given: str) -> None:
    with collecting() as collector:
        async with between(whole, otlp_endpoint=collector.url) as (engine, port, gateway):
            await ask(port, 1, more=f"traceparent: {given}\r\n")
            trace, _, recorded = told(engine.heads[0])
            assert trace not in (TRACE, "0" * 32)
            assert recorded
            await closed(gateway)


async def test_whom_the_client_or_the_share_leaves_out_is_not_recorded_but_passed_on() -> None:
    with collecting() as collector:
        config: dict[str, Any] = {"otlp_endpoint": collector.url, "trace_share": 0.0}
        async with between(whole, **config) as (engine, port, gateway):
            await ask(port, 1)
            await ask(port, 1, more=GIVEN.replace("-01\r", "-00\r"))
            assert not told(engine.heads[0])[2]
            assert told(engine.heads[1])[::2] == (TRACE, False)
            await closed(gateway)
            assert counted(gateway, "engineroom_spans_total") == 0
    assert collector.spans == []


async def test_failures_and_retries_can_be_seen() -> None:
    async def never(engine: Engine, writer: asyncio.StreamWriter) -> bool:
        return False

    with collecting() as collector:
        async with between(never, otlp_endpoint=collector.url) as (_, port, gateway):
            await ask(port, 1)
            await closed(gateway)
    (server,) = collector.named("POST /v1/completions")
    assert attributes(server)["error.type"] == "engine_died"
    assert attributes(server)["http.response.status_code"] == 502
    assert server.status.code == 2


async def test_where_nobody_asks_not_a_call_is_made_for_it() -> None:
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(frame.f_code.co_filename)

    async with between(whole) as (engine, port, gateway):
        await ask(port, 1)
        sys.setprofile(note)
        try:
            await ask(port, 3, more=GIVEN)
            await ask(port, 3, stream=True, more=GIVEN)
        finally:
            sys.setprofile(None)
        assert gateway.witness is None
        assert not any(b"traceparent" in head for head in engine.heads)
    assert any(name.endswith("gateway/app.py") for name in called)  # seen, compiled or not
    assert not [name for name in called if re.search("witness|tracing|opentelemetry|/logs", name)]
    script = (
        "import sys, orchestrator.gateway.app\n"
        "assert not [each for each in sys.modules if each.startswith('opentelemetry')]"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await process.wait() == 0


async def test_a_collector_in_trouble_costs_traces_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (port_of_nobody,) = free_ports(1)
    with collecting() as collector:
        for url, status in ((f"http://127.0.0.1:{port_of_nobody}", 200), (collector.url, 400)):
            collector.status = status
            caplog.clear()
            async with between(whole, otlp_endpoint=url) as (_, port, gateway):
                answers = await ask(port, 20)
                assert all(each.startswith(b"HTTP/1.1 200") for each in answers)
                await closed(gateway)
            warned = [each for each in caplog.records if each.name == "engineroom.traces"]
            assert len(warned) <= 1
            if status == 400:
                text = gateway.metrics.render().decode()
                assert 'engineroom_spans_total{result="lost"} 40.0' in text
                assert len(warned) == 1


async def test_spans_that_a_full_queue_drops_are_counted_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made, room, batch = 3000, 2048, 256
    spans = PlainCounter("engineroom_spans_total", "", ["result"], CollectorRegistry())
    sent, lost = spans.labels("sent"), spans.labels("lost")
    with collecting() as collector:
        collector.go.clear()
        tracing = Tracing(collector.url, 1.0, "0", "gateway", spans)
        for _ in range(made):
            tracing.begin("/generate", {}).end({}, None)
        assert sent.value == 0
        assert made - room - batch <= lost.value <= made - room
        assert ["fast enough" in each.getMessage() for each in caplog.records] == [True]
        collector.go.set()
        await eventually(lambda: sent.value + lost.value == made, 10, "all are accounted for")
        await eventually(lambda: len(caplog.records) == 2, 5, "its trouble is over")
        assert "again" in caplog.records[1].getMessage()
        assert len(collector.spans) == sent.value >= room
        tracing.begin("/generate", {}).end({}, None)
        await tracing.close()  # sends what is left
        assert sent.value + lost.value == made + 1
        tracing.begin("/generate", {}).end({}, None)
    assert sent.value + lost.value == spans.labels("made").value == made + 2


def test_a_collector_that_never_answers_holds_up_neither_requests_nor_the_end() -> None:
    with collecting() as collector:
        collector.go.clear()
        with staged(["--tps", "2000"], otlp_endpoint=collector.url) as stage:
            for _ in range(300):
                assert stage.ask().status_code == 200
            until(lambda: stage.metric("engineroom_spans_total", result="made") >= 600, 5, "made")
            stage.process.send_signal(signal.SIGTERM)
            stage.process.wait(8 * SLACK)
            assert stage.process.returncode in (0, -signal.SIGTERM)


def test_logs_and_traces_hold_no_prompt_no_key_and_no_answer() -> None:
    config = {"log_requests": True, "log_format": "json", "log_level": "debug"}
    with (
        collecting() as collector,
        staged(["--tps", "2000"], otlp_endpoint=collector.url, **config) as stage,
    ):
        headers = {"authorization": "Bearer canary-in-key", "x-request-id": "mine-2"}
        body = {"prompt": "canary in prompt", "max_new_tokens": 3, "stop": ["canary in stop"]}
        got = stage.http.post(f"{stage.url}/generate", json=body, headers=headers)
        assert got.status_code == 200
        body = {"prompt": "canary in prompt", "no_such_field": "canary in field"}
        assert stage.http.post(f"{stage.url}/generate", json=body).status_code == 400
        until(lambda: len(collector.named("POST /generate")) == 2, 10, "both are sent")
        lines = [json.loads(line) for line in stage.log.read_text().splitlines()]
        metrics = stage.http.get(f"{stage.url}/metrics").text
        logged = stage.log.read_text()
    over = [line for line in lines if line["logger"] == "engineroom.requests"]
    assert [line["status"] for line in over] == [200, 400]
    assert over[0]["request"] == "mine-2"
    assert over[0]["trace"] == collector.named("POST /generate")[0].trace_id.hex()
    assert (over[0]["model"], over[0]["generated_tokens"], over[1]["error"]) == (
        "m", 3, "unsupported_parameter",
    )  # fmt: skip
    for text in (logged, metrics, bytes(collector.raw).decode("latin-1")):
        assert "canary" not in text
        assert got.json()["generated_text"].strip() not in text


def test_without_opentelemetry_the_setting_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_tracing(None)
    check_tracing("http://127.0.0.1:4318")
    monkeypatch.setattr("orchestrator.observability.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engineroom\[traces\]"):
        check_tracing("http://127.0.0.1:4318")


def test_every_line_of_both_planes_is_an_object(make_room: RoomMaker) -> None:
    room = make_room("--tps", "500", log_format="json", log_requests=True).start()
    asked = {"prompt": "Hi", "max_new_tokens": 2}
    answer = room.http.post(f"{room.url}/generate", json=asked)
    room.close()
    control = [json.loads(line) for line in room.log.read_text().splitlines()]
    gateway = [
        json.loads(line) for line in (room.data / "logs" / "gateway-0.log").read_text().splitlines()
    ]
    states = [(line["engine"], line["new"]) for line in control if line["message"] == "state"]
    assert ("demo-0", "ready") in states
    assert {"at", "level", "logger"} <= control[0].keys()
    (over,) = (line for line in gateway if line["message"] == "request over")
    assert over["request"] == answer.headers["x-request-id"]
    assert "trace" not in over


def test_the_collectors_headers_reach_the_gateway_and_nobody_else(make_room: RoomMaker) -> None:
    with collecting() as collector:
        room = make_room("--tps", "500", "--print-env", otlp_endpoint=collector.url)
        room.env["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=Bearer%20canary-of-otlp"
        room.start()
        asked = {"prompt": "Hi", "max_new_tokens": 2}
        assert room.http.post(f"{room.url}/generate", json=asked).status_code == 200
        until(lambda: collector.named("POST /generate"), 10, "the trace is there")
        assert collector.headers["authorization"] == "Bearer canary-of-otlp"
        engine = (room.data / "logs" / "demo-0.log").read_text()
        assert "environment:" in engine
        assert "OTEL_" not in engine
        pages = ("/admin/engines", "/admin/models", "/admin/events", "/metrics")
        assert not [page for page in pages if "canary" in room.admin("GET", page).text]
        kept = [path for path in room.data.rglob("*") if path.is_file()]
        assert not [path for path in kept if b"canary-of-otlp" in path.read_bytes()]
        assert {"state.db", "demo-0.log", "gateway-0.log"} <= {path.name for path in kept}
