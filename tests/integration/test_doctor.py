"""The doctor looks at a real server, in health and in trouble."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from orchestrator.cli.doctor import doctor
from tests.harness import Room


def findings(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit code and the findings by what they are about."""
    code = 0
    try:
        doctor(quick=True, config=config, as_json=True)
    except typer.Exit as ended:
        code = ended.exit_code
    found: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(capsys.readouterr().out):
        found.setdefault(each["about"], []).append(each)
    return code, found


def test_a_server_is_seen_alive_killed_and_spoiled(
    make_room: Callable[..., Room], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room = make_room(drain_s=0).start()
    config = tmp_path / "config.yaml"
    port, admin_port = (int(room.ready[name].rsplit(":")[-1]) for name in ("gateway", "admin"))
    ports = {"port": port, "admin_port": admin_port}
    config.write_text(json.dumps({"data_dir": str(room.data), **ports}))
    room.data.chmod(0o700)
    code, found = findings(config, capsys)
    assert room.process is not None
    assert f"pid {room.process.pid}" in found["server"][0]["text"]
    for name in ("server", "port", "admin_port", "admin token", "state file", "data folder"):
        assert [each["level"] for each in found[name]] == ["ok"], found[name]
    assert "ours" in found["port"][0]["text"]
    assert (code == 1) == any(e["level"] == "wrong" for rows in found.values() for e in rows)

    room.kill()
    (room.data / "admin.token").chmod(0o644)
    (room.data / "state.broken-1").write_bytes(b"x")
    engine = next(each for each in room.processes() if "--serial" in each.cmdline())
    with socket.create_server(("127.0.0.1", admin_port)):
        code, found = findings(config, capsys)
    assert code == 1
    assert "adopts" in found["server"][0]["remedy"]
    assert found["port"][0]["level"] == "ok"  # the gateway of ours that is left
    assert found["admin_port"][0]["level"] == "wrong"
    assert f"pid {os.getpid()}" in found["admin_port"][0]["text"]
    assert "chmod 600" in found["admin token"][0]["remedy"]
    assert found[f"demo-0 (pid {engine.pid})"][0]["level"] == "wrong"
    assert "state.broken-1" in found["state"][0]["text"]
