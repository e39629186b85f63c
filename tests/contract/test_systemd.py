"""The systemd units: what systemd says of them, and that they fit what Engine Room does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from orchestrator.cli.main import app
from orchestrator.settings import Settings, load_settings

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
SERVER, GATEWAY = UNITS / "engineroom.service", UNITS / "engineroom-gateway@.service"
PROGRAM = "/opt/engineroom/bin/engineroom"
each_unit = pytest.mark.parametrize("unit", [SERVER, GATEWAY], ids=lambda path: path.stem)
EXPOSURE = {SERVER: 2.5, GATEWAY: 2.0}  # of 10, by systemd's own count


def service(unit: Path) -> dict[str, list[str]]:
    """The section [Service]: every key with its values."""
    found: dict[str, list[str]] = {}
    text = unit.read_text().split("[Service]")[1].split("[Install]")[0]
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def one(unit: Path, key: str) -> str:
    """The value of a key that comes once."""
    (value,) = service(unit)[key]
    return value


def analyze(unit: Path, folder: Path, *words: str) -> str:
    """What `systemd-analyze` says of a unit whose program exists here."""
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing (Debian, Ubuntu: apt install systemd)"
    copy = folder / unit.name.replace("@", "@here")
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    done = subprocess.run([program, *words, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@each_unit
def test_systemd_has_nothing_to_say(unit: Path, tmp_path: Path) -> None:
    assert analyze(unit, tmp_path, "verify") == ""


def test_systemd_would_say_something(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.service"
    wrong.write_text(SERVER.read_text().replace("PrivateTmp", "PrivatTmp"))
    folder = tmp_path / "copy"
    folder.mkdir()
    assert "Unknown key 'PrivatTmp'" in analyze(wrong, folder, "verify")


@each_unit
def test_it_is_hardened(unit: Path, tmp_path: Path) -> None:
    told = analyze(unit, tmp_path, "security", "--offline=true", "--no-pager")
    found = re.search(r"exposure level for \S+: ([\d.]+)", told)
    assert found
    assert float(found[1]) <= EXPOSURE[unit]


@each_unit
def test_what_it_starts_exists(unit: Path) -> None:
    program, name, *rest = shlex.split(one(unit, "ExecStart"))
    assert program == PROGRAM
    commands = get_command(app).commands  # type: ignore[attr-defined]
    commands[name].make_context(name, rest)


@each_unit
def test_a_stop_has_the_time_that_a_drain_takes(unit: Path) -> None:
    settings = Settings()
    assert float(one(unit, "TimeoutStopSec")) >= settings.drain_s + settings.stop_grace_s
    assert one(unit, "Type") == "notify"
    assert one(unit, "NotifyAccess") == "main"


def test_engines_outlive_a_restart_and_only_that() -> None:
    assert one(SERVER, "KillMode") == "process"
    assert one(SERVER, "KillSignal") == "SIGTERM"  # it drains and ends them itself
    assert one(SERVER, "RestartKillSignal") == "SIGKILL"  # it cannot, and leaves them
    assert one(SERVER, "OOMPolicy") == "continue"
    assert one(SERVER, "RuntimeDirectoryPreserve") == "restart"
    assert float(one(SERVER, "RestartSec")) < Settings().lease_s / 10


def test_its_folders_are_where_the_settings_look(tmp_path: Path) -> None:
    env = dict(x.split("=", 1) for row in service(SERVER)["Environment"] for x in row.split())
    named = {key: value for key, value in env.items() if key.startswith("ENGINEROOM_")}
    file = tmp_path / "engineroom.yaml"
    file.write_text("model: demo\n")
    settings = load_settings(env={**named, "ENGINEROOM_CONFIG": str(file)})
    assert str(settings.data) == f"/var/lib/{one(SERVER, 'StateDirectory')}"
    assert env["XDG_RUNTIME_DIR"] == f"/run/{one(SERVER, 'RuntimeDirectory')}"
    assert env["XDG_CACHE_HOME"] == "/var/cache"
    assert one(SERVER, "CacheDirectory") == "engineroom"  # as Settings.cache names its folder


def test_the_user_is_made_under_the_name_that_the_unit_has() -> None:
    (line,) = [x for x in (UNITS / "engineroom.sysusers").read_text().splitlines() if x[0] != "#"]
    kind, name, *_ = shlex.split(line)
    assert (kind, name) == ("u", one(SERVER, "User"))
