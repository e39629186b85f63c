"""What clients see when an engine misbehaves: exactly one legal terminal, whatever it is."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import SLACK, Room, sample, until, within
from tests.streams import events_of

RoomMaker = Callable[..., Room]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server whose engine misbehaves only when a prompt asks for it."""
    from tests.harness import fake_room, processes_of

    folder = tmp_path_factory.mktemp("faults")
    made = fake_room(
        folder / "data", "--tps", "200", stall_timeout_s=1, max_queue=200, serial=False
    ).start()
    yield made
    made.close()
    assert processes_of(str(folder)) == []


def prompt(fault: dict[str, Any]) -> str:
    return "Hi fake=" + json.dumps(fault)


def test_a_stream_without_done_is_complete_all_the_same(room: Room) -> None:
    body = {"prompt": prompt({"no_done": True}), "max_new_tokens": 3}
    _, got = events_of(room.http, f"{room.url}/generate_stream", body)
    assert got[-1] == "[DONE]"
    assert json.loads(got[-2])["token_count"] == 3


def test_a_request_that_the_engine_refuses_does_not_cast_suspicion_on_it(room: Room) -> None:
    def transitions() -> float:
        return room.metric("engineroom_engine_transitions_total", replica="demo-0", new="suspect")

    before = transitions()
    for _ in range(5):
        assert room.generate(prompt({"status": 500})).json()["error"]["code"] == "engine_error"
    assert room.generate("x", max_new_tokens=1).status_code == 200
    assert transitions() == before


def test_a_hostile_body_costs_nobody_else_anything(room: Room) -> None:
    hostile = b'{"a":' + b'\\"' * 1_000_000
    with within(3, "both are refused"):
        answer = room.http.post(
            f"{room.url}/generate", content=hostile, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400
        huge = room.generate("word " * 700_000)
        assert huge.json()["error"]["code"] == "context_length_exceeded"


def test_streams_do_not_mix(room: Room) -> None:
    """Each of many concurrent streams sees its own words only."""
    wrong: list[str] = []

    def ask(number: int) -> None:
        with httpx.Client(timeout=60 * SLACK, trust_env=False) as client:
            body = {"prompt": f"echo=word{number}", "max_new_tokens": 30}
            text = client.post(f"{room.url}/generate", json=body).json()["generated_text"]
            if set(text.split()) != {f"word{number}"}:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 * SLACK)
    assert wrong == []


@pytest.mark.slow
def test_requests_during_a_long_load_wait_and_are_served(
    make_room: RoomMaker, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    room = make_room("--load-until", str(loaded))
    room.launch()
    url = f"http://127.0.0.1:{json.loads(room.command[-1])['settings']['port']}"

    def health() -> dict[str, Any] | None:
        try:
            value = dict(room.http.get(f"{url}/health").json())
        except httpx.TransportError:
            return None
        return value if value["models"] else None

    early = until(health, 10, "the gateway answers long before the engine")
    assert early["models"][0]["state"] == "starting"
    assert room.http.get(f"{url}/health/ready").status_code == 503
    body = {"prompt": "patient", "max_new_tokens": 2}

    def waiting() -> float:
        return sample(room.http.get(f"{url}/metrics").text, "engineroom_waiting", {})

    with ThreadPoolExecutor(1) as beside:
        patient = beside.submit(room.http.post, f"{url}/generate", json=body)
        until(lambda: waiting() == 1, 10, "it waits")
        loaded.touch()
        assert patient.result().json()["token_count"] == 2
    assert room.http.get(f"{url}/health/ready").status_code == 200


def test_keys_guard_everything_but_health(make_room: RoomMaker) -> None:
    room = make_room(api_keys="sekret,second").start()
    body = {"prompt": "x", "max_new_tokens": 1}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sekret"}):
        answer = room.http.post(f"{room.url}/generate", json=body, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        for path in ("/models", "/v1/models", "/metrics"):
            assert room.http.get(room.url + path, headers=headers).status_code == 401
    for key in ("sekret", "second"):
        good = {"authorization": f"Bearer {key}"}
        answer = room.http.post(f"{room.url}/generate", json=body, headers=good)
        assert answer.status_code == 200
    assert room.http.get(f"{room.url}/health").status_code == 200
    for each in room.processes():
        if "serve_fake" not in " ".join(each.cmdline()):  # the test's own way to hand settings over
            assert "sekret" not in " ".join(each.cmdline())
    for file in room.data.rglob("*"):
        if file.is_file() and file.suffix in {".log", ".json", ".stderr"}:
            assert "sekret" not in file.read_text(errors="replace")


def raw(room: Room, data: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", room.port), timeout=15 * SLACK) as conn:
        conn.sendall(data)
        got = b""
        while part := conn.recv(65536):
            got += part
        return got


def test_bodies_that_are_too_large_or_of_the_wrong_kind(make_room: RoomMaker) -> None:
    room = make_room(max_body_bytes=2000).start()
    big = json.dumps({"prompt": "x" * 5000})
    answer = room.http.post(
        f"{room.url}/generate", content=big, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    chunked = (
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n" + b"800\r\n" + b"y" * 2048 + b"\r\n"
    )
    assert b"413" in raw(room, chunked).split(b"\r\n")[0]
    for kind in ("text/plain", "multipart/form-data", ""):
        answer = room.http.post(
            f"{room.url}/generate", content=b"{}", headers={"content-type": kind}
        )
        assert answer.status_code == 415
    assert b"400" in raw(room, b"NONSENSE\r\n\r\n").split(b"\r\n")[0]
    assert room.generate("x", max_new_tokens=1).status_code == 200


@pytest.mark.slow
def test_a_queue_deadline_is_a_503_with_a_time_to_come_back(make_room: RoomMaker) -> None:
    room = make_room("--tps", "5", queue_timeout_s=0.5).start()
    with room.stream("blocker", max_new_tokens=500) as blocker:
        next(blocker)
        with httpx.Client(timeout=60, trust_env=False) as client, within(2, "it is told"):
            late = client.post(f"{room.url}/generate", json={"prompt": "late"})
    assert (late.status_code, late.json()["error"]["code"]) == (503, "model_unavailable")
    assert int(late.headers["retry-after"]) >= 1


def test_an_engine_is_asked_for_the_usage_that_clients_are_told(make_room: RoomMaker) -> None:
    """The fake counts words as tokens of a prompt, which no tokenizer of ours would."""
    room = make_room("--usage-in-stream").start()
    told = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    plain: dict[str, Any] = {"prompt": "one two three", "max_tokens": 5}
    assert room.http.post(f"{room.url}/v1/completions", json=plain).json()["usage"] == told
    messages = [{"role": "user", "content": "one two three"}]
    chat: dict[str, Any] = {"messages": messages, "max_tokens": 5}
    assert room.http.post(f"{room.url}/v1/chat/completions", json=chat).json()["usage"] == told
    url = f"{room.url}/v1/chat/completions"
    _, unasked = events_of(room.http, url, {**chat, "stream": True})
    assert not any('"usage"' in event for event in unasked)
    _, asked = events_of(
        room.http, url, {**chat, "stream": True, "stream_options": {"include_usage": True}}
    )
    (counts,) = [json.loads(event)["usage"] for event in asked if '"usage"' in event]
    assert counts == told
    assert room.generate("one two", max_new_tokens=4).json()["token_count"] == 4
