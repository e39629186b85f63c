"""Faults of the control plane: crash loops, lost supervisors, racing orders, settings, memory."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import psutil

from tests.fakes.engine import OOM
from tests.faults.lab import Lab, scenario
from tests.harness import ROOT, Room, until
from tests.streams import Answer, ask, check_stream, request_bytes

DEMO = ROOT / "orchestrator" / "models" / "demo" / "demo.F16.gguf"


def whole_stream(room: Room, tokens: int, **fields: Any) -> int:
    """One stream whose every token is checked; how many came."""
    body = {"prompt": "Hi", "max_new_tokens": tokens, **fields}
    url = f"{room.url}/generate_stream"
    with (
        httpx.Client(timeout=300, trust_env=False, verify=False) as client,
        client.stream("POST", url, json=body) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        told = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert told[-1] == "[DONE]", told[-1]
    assert [json.loads(e)["token"].strip() for e in told[:-2]] == [f"w{n}" for n in range(tokens)]
    return int(json.loads(told[-2])["token_count"])


@scenario("F11", "fake")
def crash_loop(lab: Lab) -> None:
    broken = lab.folder / "broken"
    room = lab.make(
        "--fail-on-start", "3", "--fail-while", str(broken),
        restart_limit=3, backoff_max_s=0.2, half_open_s=3,
    ).start()  # fmt: skip
    broken.touch()
    os.kill(room.engine()["pid"], signal.SIGKILL)
    row = room.wait_state("failed")
    assert "exited with code 3" in row["why"]
    assert "restarts" in row["why"]
    refused = room.generate("x")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    states = [e["detail"]["new"] for e in room.events("engine.state") if e["subject"] == "demo-0"]
    assert states[: states.index("failed")].count("starting") <= 1 + 3
    broken.unlink()
    began = time.monotonic()
    room.wait_state("ready")
    lab.took(time.monotonic() - began)


@scenario("F12", "fake")
def out_of_memory_at_the_start(lab: Lab) -> None:
    room = lab.make(
        "--fail-on-start", "1", "--fail-text", OOM["llama_cpp"], restart_limit=50, backoff_max_s=0.1
    )
    began = time.monotonic()
    room.launch()
    assert room.wait_end() == 70
    lab.took(time.monotonic() - began)
    said = room.log.read_text()
    assert "no smaller plan is left after" in said
    assert "context 2048 -> 1024" in said


@scenario("F14", "fake")
def supervisor_killed(lab: Lab) -> None:
    room = lab.make("--tps", "20", serial=False).start()
    before = {name: room.engine(name) for name in ("demo-0", "gateway-0")}
    with ThreadPoolExecutor(8) as many:
        streams = [many.submit(whole_stream, room, 80) for _ in range(8)]
        until(lambda: room.engine("demo-0")["in_flight"] == 8, 10, "all streams run")
        room.kill()
        room.start()
        lab.took(room.ready["start_seconds"])
        assert [each.result() for each in streams] == [80] * 8
    for name, row in before.items():
        now = room.engine(name)
        assert (now["pid"], now["generation"]) == (row["pid"], row["generation"])
    assert room.metric("engineroom_engine_restarts_total", replica="demo-0") == 0


@scenario("F15", "fake")
def supervisor_killed_in_the_middle_of_an_order(lab: Lab) -> None:
    luck = random.Random(15)
    room = lab.make("--load-s", "0.3", replicas=2).start()
    for order in ("restart", "unload", "restart", "stop", "restart"):
        room.admin("POST", f"/admin/models/demo/{order}", json={"drain_s": 1})
        threading.Event().wait(luck.uniform(0, 0.6))
        room.kill()
        began = time.monotonic()
        room.start()
        room.admin("POST", "/admin/models/demo/start")
        until(lambda: [r["state"] for r in room.engines()] == ["ready"] * 2, 15, "it converges")
        leaders = {row["pid"] for row in room.engines()}
        until(partial(_only, room, leaders), 15, "no other engine lives")
        lab.took(time.monotonic() - began)
    assert room.generate("x", max_new_tokens=1).status_code == 200


def _only(room: Room, leaders: set[int]) -> bool:
    return {each.pid for each in room.processes_named("engine.py")} == leaders


@scenario("F19", "fake")
def the_end_with_many_streams(lab: Lab) -> None:
    count, tokens = 200, 60
    room = lab.make("--tps", "10", "--slots", "200", serial=False, drain_s=30).start()
    assert room.process is not None
    with ThreadPoolExecutor(1) as apart:
        streams = apart.submit(asyncio.run, _streams(room.port, count, tokens))
        until(lambda: room.model()["in_flight"] == count, 20, "all run")
        began = time.monotonic()
        room.process.send_signal(signal.SIGTERM)
        refused = until(lambda: _refusal(room), 5, "new requests are refused")
        assert refused["code"] == "draining"
        for each in streams.result():
            assert each.status == 200, each
            lines = each.body.decode().splitlines()
            check_stream([x.partition("data: ")[2] for x in lines if "data: " in x], tokens)
    assert room.wait_end() == 0
    lab.took(time.monotonic() - began)
    assert room.processes() == []


async def _streams(port: int, count: int, tokens: int) -> list[Answer]:
    data = request_bytes("Hi", "/generate_stream", max_new_tokens=tokens)
    return await asyncio.gather(*(ask(port, data) for _ in range(count)))


def _refusal(room: Room) -> dict[str, Any] | None:
    answer = room.generate("x", max_new_tokens=1)
    return dict(answer.json()["error"]) if answer.status_code == 503 else None


@scenario("F20", "fake")
def restarts_under_load(lab: Lab) -> None:
    room = lab.make("--tps", "100", serial=False, replicas=2).start()
    stop = threading.Event()

    def client() -> int:
        done = 0
        while not stop.is_set():
            assert whole_stream(room, 30) == 30
            done += 1
        return done

    with ThreadPoolExecutor(8) as many:
        clients = [many.submit(client) for _ in range(8)]
        try:
            for _ in range(3):
                before = {row["pid"] for row in room.engines()}
                began = time.monotonic()
                room.admin("POST", "/admin/models/demo/restart")
                until(partial(_all_new, room, before), 30, "both are new")
                lab.took(time.monotonic() - began)
        finally:
            stop.set()
        assert all(each.result() > 0 for each in clients)


def _all_new(room: Room, before: set[int]) -> bool:
    rows = room.engines()
    fresh = [row for row in rows if row["state"] == "ready" and row["pid"] not in before]
    return len(rows) == len(fresh) == 2


@scenario("F39", "fake")
def bad_settings_files(lab: Lab) -> None:
    file = lab.folder / "engineroom.yaml"
    good = "models: [{model: demo, preload: true, ttl_s: %d}]\n"
    file.write_text(good % 900)
    room = lab.make(file=file).start()
    pid = room.engine()["pid"]
    bad = ("models: [", "modles: []\n", "models: [{model: demo, ttl_s: x}]\n", "models: 5\n", "\0")
    for text in bad:
        file.write_text(text)
        answer = room.admin("POST", "/admin/reload")
        assert answer.status_code == 400, text
        assert str(file) in answer.json()["error"]["message"]
    file.unlink()
    assert room.admin("POST", "/admin/reload").status_code == 400
    for number in range(100):
        file.write_text(good % (1000 + number))
    began = time.monotonic()
    until(lambda: room.model()["ttl_s"] == 1099, 5, "the last save counts")
    lab.took(time.monotonic() - began)
    assert room.engine()["pid"] == pid


@scenario("F40", "fake")
def orders_race(lab: Lab) -> None:
    room = lab.make(serial=False).start()
    luck = random.Random(40)
    orders = [luck.choice(("load", "unload", "restart", "stop", "start", "pin", "unpin"))
              for _ in range(120)]  # fmt: skip

    def give(order: str) -> int:
        with httpx.Client(trust_env=False, timeout=120) as client:
            return client.post(
                f"{room.ready['admin']}/admin/models/demo/{order}",
                headers={"authorization": f"Bearer {room.token}"},
                json={"drain_s": 0.2} if order in {"unload", "restart", "stop"} else None,
            ).status_code

    with ThreadPoolExecutor(12) as many:
        codes = set(many.map(give, orders))
    assert codes == {202}
    began = time.monotonic()
    room.admin("POST", "/admin/models/demo/start")
    until(lambda: room.generate("x", max_new_tokens=1).status_code == 200, 15, "it serves")
    until(lambda: len(room.engines()) == 1, 15, "one engine is left")
    until(lambda: len(room.processes_named("engine.py")) == 1, 15, "and its processes")
    lab.took(time.monotonic() - began)
    assert "died; restart engineroom" not in room.log.read_text()


@scenario("F42", "fake")
def bad_model_files(lab: Lab) -> None:
    whole = DEMO.read_bytes()
    for name, make in (
        ("truncated", lambda path: path.write_bytes(whole[: len(whole) // 2])),
        ("text", lambda path: path.write_text("no model")),
        ("empty", lambda path: path.write_bytes(b"")),
        ("folder", lambda path: path.mkdir()),
        ("absent", lambda path: None),
    ):
        path = lab.folder / f"{name}.gguf"
        make(path)
        room = lab.make(name=name, model=str(path))
        began = time.monotonic()
        room.launch()
        assert room.wait_end() == 65, name
        lab.took(time.monotonic() - began)
        assert path.name in room.log.read_text().splitlines()[-1]
        assert "new=starting" not in room.log.read_text()


@scenario("F47", "fake")
def foreign_process_holds_the_memory(lab: Lab) -> None:
    free = psutil.virtual_memory().available
    claims = str(free - (2 << 30))
    room = lab.make("--claims", claims, preload=False, memory_wait_s=1).start()
    hog = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(3 << 30); print(len(x), flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert hog.stdout is not None
        hog.stdout.readline()
        began = time.monotonic()
        refused = room.generate("x", max_new_tokens=1)
        lab.took(time.monotonic() - began)
        assert refused.status_code == 503
        assert "GiB needed" in refused.json()["error"]["message"]
        assert hog.poll() is None
    finally:
        hog.kill()
        hog.communicate()
    until(lambda: room.generate("x", max_new_tokens=1).status_code == 200, 15, "there is room")
