"""The systemd units: what systemd says of them, and that they fit what Engine Room does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from orchestrator.cli.main import app
from orchestrator.settings import Settings, load_settings

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
SERVER, GATEWAY = UNITS / "engineroom.service", UNITS / "engineroom-gateway@.service"
PROGRAM = "/opt/engineroom/bin/engineroom"
each_unit = pytest.mark.parametrize("unit", [SERVER, GATEWAY], ids=lambda path: path.stem)
NEEDS = 250  # `systemd-analyze security --offline`
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


@cache
def analyzer() -> str:
    """`systemd-analyze`, where it is new enough; a test fails in one sentence where it is not."""
    program = shutil.which("systemd-analyze")
    told = ""
    if program:
        argv = [program, "--version"]
        told = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    there = re.match(r"systemd (\d+)", told)
    if not program or not there or int(there[1]) < NEEDS:
        pytest.fail(
            f"systemd-analyze of systemd {NEEDS} or later is needed, and "
            f"{f'{program} is of {there[0]}' if there else 'there is none'}: "
            "apt install systemd (Debian 12, Ubuntu 24.04, or later)",
            pytrace=False,
        )
    return program


def analyze(unit: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze` says of a unit whose program exists here."""
    copy = folder / named(unit)
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    argv = [analyzer(), *words, str(copy)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def named(unit: Path) -> str:
    """The name of the unit, or of an instance of it."""
    return unit.name.replace("@", "@here")


def verified(unit: Path, folder: Path) -> list[str]:
    """The lines of `verify` that are of this unit: it looks at those of the machine too."""
    done = analyze(unit, folder, "verify", "--man=no")
    return [line for line in (done.stdout + done.stderr).splitlines() if named(unit) in line]


@each_unit
def test_systemd_has_nothing_to_say(unit: Path, tmp_path: Path) -> None:
    assert verified(unit, tmp_path) == []


def test_systemd_would_say_something(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.service"
    wrong.write_text(SERVER.read_text().replace("PrivateTmp", "PrivatTmp"))
    folder = tmp_path / "copy"
    folder.mkdir()
    assert "Unknown key 'PrivatTmp'" in "".join(verified(wrong, folder))


def test_what_other_units_do_wrong_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "other.service").write_text("[Service]\nExecStart=/bin/true\nPrivatTmp=1\n")
    unit = tmp_path / "of" / SERVER.name
    unit.parent.mkdir()
    unit.write_text(SERVER.read_text().replace("Wants=", "Wants=other.service "))
    done = analyze(unit, tmp_path, "verify", "--man=no")
    assert "other.service:3: Unknown key 'PrivatTmp'" in done.stderr
    assert verified(unit, tmp_path) == []


@pytest.mark.parametrize(
    ("version", "says"),
    [("systemd 249 (249.11)", "is of systemd 249: apt install"), ("", "there is none: apt")],
)
def test_an_analyzer_that_is_too_old_or_missing_is_said(
    version: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version:
        (tmp_path / "systemd-analyze").write_text(f"#!/bin/sh\necho '{version}'\n")
        (tmp_path / "systemd-analyze").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match=says) as told:
        analyzer.__wrapped__()
    assert told.value.pytrace is False


@each_unit
def test_it_is_hardened(unit: Path, tmp_path: Path) -> None:
    done = analyze(unit, tmp_path, "security", "--offline=true", "--no-pager")
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
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
