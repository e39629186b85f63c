"""Faults of what holds an engine: its shim, its tree, its port, its log, its memory."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from orchestrator.runtimes.base import HandleRecord, Identity
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime, is_alive
from orchestrator.runtimes.shim.kernel import identity
from tests.faults.lab import Lab, scenario
from tests.harness import Room, processes_of, until, watched_by


def shim_of(room: Room) -> Identity:
    """The shim that holds the engine, by the shim's own word."""
    told = json.loads(folder_of(room).joinpath("pid.json").read_text())
    return Identity.model_validate(told["shim"])


def folder_of(room: Room) -> Path:
    """The folder of the engine's latest generation."""
    return max((room.data / "instances/demo-0").iterdir(), key=lambda path: int(path.name))


def stopped(room: Room) -> float:
    """Stop the model at once; the seconds that took."""
    began = time.monotonic()
    room.admin("POST", "/admin/models/demo/stop", json={"drain_s": 0})
    room.wait_state("stopped")
    return time.monotonic() - began


@scenario("F3", "fake")
def worker_killed(lab: Lab) -> None:
    room = lab.make("--vital-child", "FAKE::Worker_1").start()
    before = room.engine()
    leader = psutil.Process(before["pid"])
    (part,) = [each for each in leader.children() if each.cmdline()[0] == "FAKE::Worker_1"]
    until(lambda: part.pid in watched_by(shim_of(room).pid), 10, "the shim holds it")
    began = time.monotonic()
    part.kill()
    until(lambda: not leader.is_running(), 5, "the engine ends with it")
    lab.took(time.monotonic() - began)
    assert room.generate("again", max_new_tokens=2).status_code == 200
    assert room.engine()["pid"] != before["pid"]
    assert room.metric("engineroom_engine_restarts_total", replica="demo-0", cause="killed") == 1


@scenario("F8", "fake")
def term_ignored(lab: Lab) -> None:
    """As llama.cpp's servers do while a request is open, and with more than one way out."""
    room = lab.make("--term-waits-for-all", "--tps", "10", stop_grace_s=0.5, drain_s=0.3).start()
    with room.stream("Hi", max_new_tokens=500) as events:
        next(events)
        room.admin("POST", "/admin/models/demo/stop")
        rest = [json.loads(each) for each in events]
        began = time.monotonic()
    assert "error" in rest[-1]
    room.wait_state("stopped")
    lab.took(time.monotonic() - began)


@scenario("F9", "fake")
def grandchild_escapes(lab: Lab) -> None:
    room = lab.make("--ignore-sigterm", "--fork-grandchild", stop_grace_s=0.5).start()
    log = Path(room.engine()["log"])
    words = next(x for x in log.read_text().splitlines() if x.startswith("grandchild ")).split()
    grandchild = psutil.Process(int(words[1]))
    leaf = [Path(each) for each in json.loads((folder_of(room) / "leaf.json").read_text())["leaf"]]
    assert grandchild.is_running()
    began = time.monotonic()
    assert room.stop() == 0
    assert not grandchild.is_running()
    lab.took(time.monotonic() - began)
    assert room.processes() == []
    assert not any(folder.exists() for folder in leaf)


@scenario("F10", "fake", "llama_server")
def stopped_while_it_loads(lab: Lab) -> None:
    load_s = {"fake": 0.4, "llama_server": 0.6}[lab.engine]
    knobs = ("--load-s", str(load_s), "--swallow-terms", "1") if lab.engine == "fake" else ()
    room = lab.make(*knobs).start()
    stopped(room)
    stopped_at_any_moment(lab, room, load_s)
    room.admin("POST", "/admin/models/demo/start")
    assert room.wait_state("ready", seconds=120)["restarts"] == 0


def stopped_at_any_moment(lab: Lab, room: Room, load_s: float) -> None:
    """Start and stop it three times; a whole load takes about `load_s` seconds."""
    luck, pause = random.Random(10), threading.Event()
    for third in range(3):
        room.admin("POST", "/admin/models/demo/start")
        until(lambda: room.engine()["state"] in {"starting", "ready"}, 30, "it starts")
        pause.wait(luck.uniform(third / 3, (third + 1) / 3) * load_s)
        lab.took(stopped(room), "F10")
        left = processes_of(str(room.data / "instances/demo-0"))
        assert [each for each in left if each.pid != shim_of(room).pid] == []


@scenario("F16", "fake")
def supervisor_gone_for_good(lab: Lab) -> None:
    room = lab.make("--ignore-sigterm", "--fork-grandchild", lease_s=1.5, stop_grace_s=0.5).start()
    room.kill()
    began = time.monotonic()
    until(lambda: not room.processes(), 15, "engine and gateway end with their lease")
    lab.took(time.monotonic() - began)


@scenario("F17", "fake")
def shim_killed(lab: Lab) -> None:
    """Twice: under a supervisor, and while there is none."""
    room = lab.make("--tps", "30", "--fork-grandchild").start()
    before, first = room.engine(), shim_of(room)
    with room.stream("Hi", max_new_tokens=30) as events:
        next(events)
        began = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: shim_of(room) != first, 5, "another shim")
        lab.took(time.monotonic() - began)
        rest = list(events)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["token_count"] == 30
    second = shim_of(room)
    events = room.admin("GET", "/admin/events").json()["events"]
    assert [each["subject"] for each in events if each["type"] == "engine.shim_lost"] == ["demo-0"]
    room.kill()
    os.kill(second.pid, signal.SIGKILL)
    began = time.monotonic()
    room.start()
    third = shim_of(room)
    assert third not in (first, second)
    assert is_alive(third)
    after = room.engine()
    assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
    os.kill(after["pid"], signal.SIGTERM)  # its end is seen, though its status is not
    until(lambda: room.engine()["generation"] == before["generation"] + 1, 10, "a new engine")
    room.wait_state("ready")
    assert room.stop() == 0
    assert room.processes() == []
    assert not room.run_folder.exists()


@scenario("F21", "fake")
def somebody_elses_pid(lab: Lab) -> None:
    """A record of another boot, and one whose pid came to mean a stranger."""
    room = lab.make().start()
    folder = folder_of(room)
    told = json.loads((folder / "pid.json").read_text())
    room.kill()
    for each in room.processes():
        with suppress(psutil.NoSuchProcess):  # ended by the end of another
            each.kill()
    with subprocess.Popen(["sleep", "60"], cwd="/", start_new_session=True) as stranger:
        his = identity(stranger.pid)
        for who in (his | {"boot_id": "another boot"}, his | {"started": his["started"] - 1}):
            (folder / "pid.json").write_text(json.dumps(told | {"child": who, "shim": who}))
            lab.took(asyncio.run(_refused(room, folder)))
            assert stranger.poll() is None
        room.start()
        assert room.engine()["pid"] != stranger.pid
        assert stranger.poll() is None
        stranger.kill()


async def _refused(room: Room, folder: Path) -> float:
    """Seconds until the runtime says that nothing of a record lives."""
    options = ProcessOptions(room.data / "instances", room.data, room.data, 5, 1, 65_536, 1)
    runtime = ProcessRuntime(options, {})
    record = HandleRecord.model_validate(
        {"name": "demo-0", "generation": 1, "spec": {"argv": ["x"]}, "folder": folder,
         "hold": {"runtime": "process", "socket": room.data / "none.sock"},
         "log": room.data / "none.log"}
    )  # fmt: skip
    began = time.monotonic()
    assert await runtime.recover(record) is None
    return time.monotonic() - began


class _Imposter(http.server.BaseHTTPRequestHandler):
    """A server that says yes to everything, as readiness asks it."""

    def do_GET(self) -> None:
        self._answer(b'{"status": "ok"}')

    def do_POST(self) -> None:
        self._answer(b'{"choices": [{"text": "I", "finish_reason": "length"}]}')

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""


@contextmanager
def _imposter(port: int) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), _Imposter) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@scenario("F25", "fake")
def port_taken(lab: Lab) -> None:
    """By one that answers as an engine would; then by one that only holds it."""
    loaded = lab.folder / "loaded"
    loaded.touch()
    room = lab.make("--load-until", str(loaded)).start()
    for generation, answers in ((2, True), (4, False)):
        stopped(room)
        loaded.unlink()  # it takes its port after that
        room.admin("POST", "/admin/models/demo/start")

        def launched(generation: int = generation) -> dict[str, Any] | None:
            row = room.engine()
            return row if row["generation"] == generation and row["url"] else None

        row = until(launched, 5, "a port was chosen")
        began = time.monotonic()
        with _imposter(int(row["url"].rsplit(":", 1)[1])) if answers else _held(row["url"]):
            loaded.touch()
            until(lambda: room.engine()["state"] == "ready", 10, "ready elsewhere")
            lab.took(time.monotonic() - began)
        after = room.engine()
        assert after["generation"] == generation + 1
        assert (after["restarts"], after["url"] == row["url"]) == (0, False)
        assert room.generate("x", max_new_tokens=2).json()["generated_text"] == "w0 w1"


@contextmanager
def _held(url: str) -> Iterator[None]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        holder.listen()
        yield


@scenario("F27", "fake")
def log_flood(lab: Lab) -> None:
    """Twice as fast for the file's size as 1 GB a minute is for 50 MiB."""
    size, files = 1 << 20, 1
    knobs = ("--log-flood", str(2 * size // 3), "--log-binary", "--log-line", "200000")
    room = lab.make(*knobs, log_max_bytes=size, log_files=files).start()
    logs = Path(room.engine()["log"]).parent
    most = 0

    def rotated() -> bool:
        nonlocal most
        held: dict[Path, int] = {}
        for path in logs.glob("demo-0.log*"):
            with suppress(FileNotFoundError):  # it got its other name meanwhile
                held[path] = path.stat().st_size
        most = max(most, sum(held.values()))
        return any(path.suffix == ".1" for path in held)

    def told() -> str:
        path = "/admin/engines/demo-0/logs"
        return str(room.admin("GET", path, params={"tail": 10_000}).text)

    until(rotated, 20, "a rotation")
    began = time.monotonic()
    assert room.generate("x", max_new_tokens=2).status_code == 200
    lab.took(time.monotonic() - began)
    (logs / "demo-0.log.1").unlink()
    until(rotated, 20, "another")
    assert most <= 1.1 * size * (files + 1)
    text = until(lambda: shown if "\\x1b[31m\\x00" in (shown := told()) else None, 5, "the flood")
    assert max(map(len, text.splitlines())) < 17_000
    assert not any(char < " " for char in text.replace("\n", ""))


@scenario("F28", "fake")
def shim_stopped(lab: Lab) -> None:
    room = lab.make("--log-flood", "1000000", "--tps", "50").start()
    shim = shim_of(room)
    gaps: list[float] = []
    with room.stream("Hi", max_new_tokens=100) as events:
        next(events)
        os.kill(shim.pid, signal.SIGSTOP)
        last = time.monotonic()
        for _ in events:
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        os.kill(shim.pid, signal.SIGCONT)
    assert len(gaps) > 100
    lab.took(max(gaps))
    assert room.engine()["restarts"] == 0
    assert shim_of(room) == shim
