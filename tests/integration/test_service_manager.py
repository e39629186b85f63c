"""A server and a gateway under a service manager: a real process, a real socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness import ROOT, SLACK, Room, clean_env, free_ports, look
from tests.stage import FakeEngine

RoomMaker = Callable[..., Room]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that a service manager listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30 * SLACK)
        yield listener


def next_word(manager: socket.socket, *, beats: bool = False) -> dict[str, str]:
    """What is said next; signs of life are passed over unless they are asked for."""
    while True:
        lines = manager.recv(65_536).decode().splitlines()
        said = dict(line.split("=", 1) for line in lines)
        if beats or "WATCHDOG" not in said:
            return said


def test_ready_is_told_once_it_serves_and_stopping_before_it_ends(
    make_room: RoomMaker, manager: socket.socket
) -> None:
    room = make_room("--load-s", "1.5", "--tps", "20")
    room.env |= {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "400000"}
    room.launch()
    assert next_word(manager, beats=True) == {"WATCHDOG": "1"}  # long before it serves
    said = next_word(manager)
    assert said["READY"] == "1"
    room.wait_ready()
    assert said["STATUS"] == f"serves demo on {room.url}"
    assert look(f"{room.url}/health/ready").status_code == 200
    with room.stream("Hi", max_new_tokens=30) as events:
        next(events)
        assert room.process is not None
        room.process.send_signal(signal.SIGTERM)
        assert next_word(manager)["STOPPING"] == "1"
        rest = list(events)
        assert rest[-1] == "[DONE]"
    assert room.wait_end() == 0


def test_a_start_that_fails_is_never_ready(make_room: RoomMaker, manager: socket.socket) -> None:
    room = make_room("--fail-on-start", "1", restart_limit=0)
    room.env["NOTIFY_SOCKET"] = manager.getsockname()
    room.launch()
    assert room.wait_end(60) != 0
    assert set(next_word(manager)) == {"STOPPING", "STATUS"}


def test_engines_outlive_a_restart_as_the_unit_makes_it(
    make_room: RoomMaker, manager: socket.socket
) -> None:
    """RestartKillSignal=SIGKILL with KillMode=process: the main process goes, nothing else."""
    room = make_room("--tps", "20")
    room.env["NOTIFY_SOCKET"] = manager.getsockname()
    room.start()
    assert next_word(manager)["READY"] == "1"
    before = room.engine()
    with room.stream("Hi", max_new_tokens=60) as events:
        next(events)
        room.kill()
        room.start()
        assert next_word(manager)["READY"] == "1"
        assert list(events)[-1] == "[DONE]"
    assert room.engine()["pid"] == before["pid"]
    assert room.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_gateway_alone_tells_it_too_and_only_once(workers: str, manager: socket.socket) -> None:
    engine, port = FakeEngine("e", ["--usage-in-stream"], 16), free_ports(1)[0]
    argv = [sys.executable, "-m", "orchestrator", "gateway", "--upstream", engine.url]
    argv += ["--model", "fake", "--port", str(port), "--gateway-workers", workers]
    env = clean_env(NOTIFY_SOCKET=manager.getsockname())
    process = subprocess.Popen(argv, cwd=ROOT, env=env)
    try:
        assert next_word(manager) == {"READY": "1", "STATUS": "serves"}
        asked = {"prompt": "Hi", "max_new_tokens": 2}
        answer = httpx.post(f"http://127.0.0.1:{port}/generate", json=asked, trust_env=False)
        assert json.loads(answer.text)["token_count"] == 2
        process.send_signal(signal.SIGTERM)
        assert next_word(manager)["STOPPING"] == "1"
        assert process.wait(20 * SLACK) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        engine.end()
