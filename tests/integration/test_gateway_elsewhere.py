"""A gateway that its supervisor did not start: one socket between them, engines off loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from orchestrator.errors import ConfigError
from orchestrator.keys import SECRETS, key_policy
from orchestrator.settings import load_settings
from tests.harness import ROOT, SLACK, Room, clean_env, free_ports, look, until

RoomMaker = Callable[..., Room]
ENGINES = "127.0.0.2"  # an address of this machine that nothing else of ours uses


@contextmanager
def outpost(socket: Path, port: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """The gateway, once it lives."""
    given = {"ENGINEROOM_CONTROL_SOCKET": str(socket), "PORT": str(port), **env}
    argv = [sys.executable, "-m", "orchestrator.outpost"]
    process = subprocess.Popen(argv, cwd=ROOT, env=clean_env(**given))

    def lives() -> bool:
        assert process.poll() is None
        try:
            return look(f"http://127.0.0.1:{port}/health/live").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(lives, 20, "the gateway lives")
        yield process
    finally:
        process.kill()
        process.wait()


def test_it_serves_what_it_is_told_before_during_and_after_a_supervisor(
    make_room: RoomMaker, tmp_path: Path
) -> None:
    port, socket = free_ports(1)[0], tmp_path / "control" / "control.sock"
    room = make_room(
        "--tps",
        "20",
        control_socket=str(socket),
        engine_host=ENGINES,
        port=port,
        open_metrics=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with outpost(socket, port) as gateway:
        assert look(f"{url}/health").json()["status"] == "starting"
        assert look(f"{url}/health/ready").status_code == 503
        room.start()
        assert room.url == url
        assert socket.stat().st_mode & 0o777 == 0o600
        until(lambda: look(f"{url}/health/ready").status_code == 200, 10, "it was told")
        assert room.generate("Hi", max_new_tokens=2).json()["generated_text"] == "w0 w1"
        rows = room.admin("GET", "/admin/engines").json()["engines"]
        assert [row["id"] for row in rows] == ["demo-0"]  # it started no gateway
        pid = room.engine()["pid"]
        listening = [c.laddr for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
        assert {address.ip for address in listening} == {ENGINES}
        with room.stream("Hi", max_new_tokens=40) as events:
            next(events)
            room.kill()
            assert list(events)[-1] == "[DONE]"
        assert room.generate("Hi", max_new_tokens=2).status_code == 200
        room.start()
        assert room.http.get(f"{room.ready['admin']}/metrics").status_code == 200
        assert room.http.get(f"{room.ready['admin']}/admin/engines").status_code == 401
        assert room.engine()["pid"] == pid
        with room.stream("Hi", max_new_tokens=20) as events:
            next(events)
            assert room.process is not None
            room.process.send_signal(signal.SIGTERM)
            assert list(events)[-1] == "[DONE]"  # drained: the gateway is still there
        assert room.wait_end() == 0
        assert gateway.poll() is None
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(10 * SLACK) in (0, -signal.SIGTERM)
    assert not socket.exists()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({}, "control_socket: set it"),
        ({"ENGINEROOM_CONTROL_SOCKET": "c.sock", "HOST": "0.0.0.0"}, "no API keys are set"),
    ],
)
def test_it_says_in_one_line_what_is_missing(env: dict[str, str], says: str) -> None:
    argv = [sys.executable, "-m", "orchestrator.outpost"]
    told = subprocess.run(argv, cwd=ROOT, env=clean_env(**env), capture_output=True, text=True)
    assert told.returncode == 78
    assert told.stderr.count("\n") == 1
    assert says in told.stderr


def test_a_mounted_secret_keeps_the_modes_of_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "api_keys"
    file.write_text("# one a line\nsecret-1\n")
    os.chmod(file, 0o644)
    settings = load_settings({"api_keys_file": str(file), "data_dir": str(tmp_path)}, env={})
    assert str(SECRETS) == "/run/secrets"
    with pytest.raises(ConfigError, match="others may read it"):
        key_policy(settings)
    monkeypatch.setattr("orchestrator.keys.SECRETS", tmp_path)
    with pytest.raises(ConfigError, match="others may read it"):  # a folder of that name is none
        key_policy(settings)
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr("orchestrator.keys._MOUNTS", mounts)
    for place in (file, tmp_path):
        mounts.write_text(f"700 690 8:1 /x {place} rw - ext4 /dev/sda1 rw\n")
        assert len(key_policy(settings).hashes) == 1
