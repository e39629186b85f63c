"""Faults on real engines: one life of each proves several rows, since it takes long to begin."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import httpx
import psutil

from tests.faults.lab import Lab, scenario
from tests.harness import ROOT, Room, until

LONG = "Tell me a long story about the shop."
DEMO = ROOT / "orchestrator" / "models" / "demo" / "demo.F16.gguf"
TOKENS = 150


def story(room: Room) -> list[str]:
    """The data payloads of one long greedy stream, over a connection of its own."""
    body = {"prompt": LONG, "max_new_tokens": TOKENS, "do_sample": False}
    with (
        httpx.Client(timeout=300, trust_env=False, verify=False) as client,
        client.stream("POST", f"{room.url}/generate_stream", json=body) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        return [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]


def text(payloads: list[str]) -> str:
    """The text of a stream that ended well."""
    assert payloads[-1] == "[DONE]", payloads[-1]
    parts = [json.loads(each) for each in payloads[:-1]]
    said = "".join(part.get("token", "") for part in parts)
    assert said == parts[-1]["generated_text"]
    return said


def _running(room: Room, many: ThreadPoolExecutor, count: int) -> list[Future[list[str]]]:
    """So many stories, the first of them under way."""
    streams = [many.submit(story, room) for _ in range(count)]
    until(lambda: room.model()["in_flight"] >= 1, 60, "they run")
    return streams


@scenario("F29", "llama_server", also=("F14", "F20"))
def a_herd_then_a_lost_supervisor_then_a_restart(lab: Lab) -> None:
    room = lab.make("--context", "512", preload=False, max_queue=400, queue_timeout_s=300).start()
    loading = time.monotonic()
    with ThreadPoolExecutor(50) as many:
        answers = list(many.map(lambda _: _one_token(room), range(500)))
    began = time.monotonic()
    codes = [code for code, _ in answers]
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 400
    assert len(room.events("model.load")) == 1
    lab.took(max((s for code, s in answers if code == 429), default=0.0))
    assert began > loading
    whole = text(story(room))
    _supervisor_killed(lab, room, whole)
    _restarted_under_load(lab, room, whole)


def _one_token(room: Room) -> tuple[int, float]:
    began = time.monotonic()
    with httpx.Client(timeout=400, trust_env=False, verify=False) as client:
        body = {"prompt": "Hi", "max_new_tokens": 1}
        answer = client.post(f"{room.url}/generate", json=body)
    return answer.status_code, time.monotonic() - began


def _supervisor_killed(lab: Lab, room: Room, whole: str) -> None:
    before = {name: room.engine(name) for name in ("demo-0", "gateway-0")}
    for _ in range(3):
        with ThreadPoolExecutor(4) as many:
            streams = _running(room, many, 4)
            room.kill()
            room.start()
            lab.took(room.ready["start_seconds"], "F14")
            assert [text(each.result()) for each in streams] == [whole] * 4
    for name, row in before.items():
        now = room.engine(name)
        assert (now["pid"], now["generation"]) == (row["pid"], row["generation"])


def _restarted_under_load(lab: Lab, room: Room, whole: str) -> None:
    """With one replica and memory for another: the new one is ready before the old one drains."""
    stop = threading.Event()

    def client() -> int:
        done = 0
        while not stop.is_set():
            assert text(story(room)) == whole
            done += 1
        return done

    old = room.engine()["pid"]
    with ThreadPoolExecutor(4) as many:
        clients = [many.submit(client) for _ in range(4)]
        try:
            began = time.monotonic()
            assert room.admin("POST", "/admin/models/demo/restart").status_code == 202
            until(lambda: _replaced(room, old), 280, "another engine serves alone")
            lab.took(time.monotonic() - began, "F20")
        finally:
            stop.set()
        assert all(each.result() > 0 for each in clients)


def _replaced(room: Room, old: int) -> bool:
    (row, *others) = room.engines()
    return not others and row["state"] == "ready" and row["pid"] != old


@scenario("F1", "llama_server", also=("F7",))
def leader_killed_and_ended(lab: Lab) -> None:
    room = lab.make("--context", "512").start()
    row = room.engine()
    leader = psutil.Process(row["pid"])
    tree = [leader, *leader.children(recursive=True)]
    with ThreadPoolExecutor(4) as many:
        streams = _running(room, many, 4)
        began = time.monotonic()
        os.kill(leader.pid, signal.SIGKILL)
        ended = next(each for each in as_completed(streams) if _broken(each.result()))
        lab.took(time.monotonic() - began)
        broken = [each for each in streams if _broken(each.result())]
    assert ended in broken  # what waited is served by the next one
    until(lambda: not any(_alive(each) for each in tree), 5, "all of it is gone")
    until(lambda: room.engine()["generation"] == 2, 10, "a new one")
    room.wait_state("ready", seconds=120)
    began = time.monotonic()
    os.kill(room.engine()["pid"], signal.SIGINT)  # it answers with an exit of its own
    until(lambda: room.engine()["generation"] == 3, 10, "counted as a crash")
    lab.took(time.monotonic() - began, "F7")
    room.wait_state("ready", seconds=120)


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _broken(payloads: list[str]) -> bool:
    """Whether a stream ended with the one error; a whole one is the other way to end."""
    if payloads[-1] == "[DONE]":
        text(payloads)
        return False
    last: Any = json.loads(payloads[-1])
    assert last["error"]["code"] == "engine_died", last
    return True


@scenario("F42", "llama_server")
def a_model_file_that_vanishes_or_lies(lab: Lab) -> None:
    path = lab.folder / "model.gguf"
    path.write_bytes(DEMO.read_bytes())
    room = lab.make(str(path), "--context", "512", half_open_s=60).start()
    path.write_bytes(DEMO.read_bytes()[:500_000])
    began = time.monotonic()
    os.kill(room.engine_of("model")["pid"], signal.SIGKILL)
    until(lambda: room.engine_of("model")["state"] == "failed", 30, "it fails for good")
    lab.took(time.monotonic() - began)
    row = room.engine_of("model")
    assert row["cause"] == "model_invalid"
    assert row["generation"] == 2
