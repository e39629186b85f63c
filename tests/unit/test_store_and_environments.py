"""The store survives damage; an engine's environment is whole or made anew."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from engine_launchers.base import EngineRequirement, LaunchSpec
from orchestrator.errors import AlreadyRunning, EngineMissing
from orchestrator.runtimes.base import HandleRecord
from orchestrator.supervision.environments import MARKER, Environments
from orchestrator.supervision.lock import only_one
from orchestrator.supervision.store import Store
from tests.harness import eventually


def record(tmp_path: Path) -> HandleRecord:
    return HandleRecord(
        name="demo-0",
        generation=3,
        spec=LaunchSpec(argv=("x",)),
        folder=tmp_path,
        socket=tmp_path / "s",
        log=tmp_path / "l",
    )


def test_records_and_events_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.save("print", record(tmp_path), None)
    store.add_event("engine.state", "demo-0", old="starting", new="ready")
    store.close()
    again = Store(tmp_path / "state.db")
    assert [row.record for row in again.saved()] == [record(tmp_path)]
    assert again.events(5, "demo-0")[0]["detail"] == {"old": "starting", "new": "ready"}
    assert again.events(5, "other") == []
    again.forget("demo-0")
    assert again.saved() == ()
    again.close()


@pytest.mark.parametrize("damage", [b"", b"not a database, not at all" * 50, None, b"cut"])
def test_a_damaged_file_is_set_aside_and_work_goes_on(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "state.db"
    store = Store(path)
    store.save("print", record(tmp_path), None)
    store.close()
    if damage is None:
        import sqlite3

        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
    else:
        path.write_bytes(path.read_bytes()[:5000] if damage == b"cut" else damage)
    again = Store(path)
    again.add_event("x", "y")
    assert again.events()[0]["type"] == "x"
    again.close()
    assert bool(list(tmp_path.glob("*.broken-*"))) == (damage != b"")


def test_a_row_that_cannot_be_read_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.save("print", record(tmp_path), None)
    store._db.execute("UPDATE instances SET record = '{}'")
    assert store.saved() == ()
    store.close()


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with only_one(path), pytest.raises(AlreadyRunning, match=str(os.getpid())), only_one(path):
        pass
    with only_one(path):
        pass


def need(**changes: object) -> EngineRequirement:
    made = EngineRequirement(
        engine="llama_cpp",
        version="1",
        packages=("typing-extensions",),
        check=("{python}", "-c", "import typing_extensions"),
    )
    return made.model_copy(update=changes)


def install(environments: Environments, requirement: EngineRequirement) -> list[str]:
    lines: list[str] = []
    asyncio.run(environments.install(requirement, lambda line, _: lines.append(line)))
    return lines


@pytest.mark.slow
def test_an_environment_is_made_once_and_anew_when_the_need_changes(tmp_path: Path) -> None:
    environments = Environments(tmp_path, os.environ)
    assert not environments.installed(need())
    assert install(environments, need())
    assert environments.installed(need())
    assert install(environments, need()) == []
    assert environments.python(need()).startswith(str(tmp_path))
    assert not environments.installed(need(packages=("typing-extensions", "packaging")))
    (environments.path(need()) / MARKER).unlink()  # as an interruption leaves it
    assert install(environments, need())
    with pytest.raises(EngineMissing, match="could not be installed"):
        install(environments, need(version="2", packages=("./does-not-exist",)))


def test_a_failing_check_is_a_failed_installation(tmp_path: Path) -> None:
    broken = need(packages=(), check=(sys.executable, "-c", "raise SystemExit('error: no')"))
    environments = Environments(tmp_path, {**os.environ, "PATH": str(tmp_path)})
    fake = tmp_path / "uv"  # an installer that does nothing and succeeds
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    environments.path(broken).mkdir()
    (tmp_path / "llama_cpp-1").rmdir()
    with pytest.raises(EngineMissing, match="could not be installed"):
        install(environments, broken)


async def test_an_installation_that_is_given_up_leaves_no_compiler_running(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    fake = tmp_path / "uv"
    fake.write_text(f"#!/bin/sh\n/bin/sleep 300 &\necho $! > {pids}\nwait\n")
    fake.chmod(0o755)
    environments = Environments(tmp_path / "envs", {"PATH": str(tmp_path)})
    task = asyncio.create_task(environments.install(need(), lambda *_: None))
    await eventually(lambda: pids.exists() and pids.read_text().strip(), 10, "the compiler runs")
    compiler = psutil.Process(int(pids.read_text()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(
        lambda: not compiler.is_running() or compiler.status() == psutil.STATUS_ZOMBIE,
        5,
        "the compiler is gone",
    )


def test_build_scripts_never_see_our_keys(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    fake = tmp_path / "uv"
    fake.write_text(f"#!/bin/sh\n/usr/bin/env >> {seen}\n")
    fake.chmod(0o755)
    env = {"PATH": str(tmp_path), "ENGINEROOM_API_KEYS": "sekret"}
    environments = Environments(tmp_path / "envs", env)
    with pytest.raises(FileNotFoundError):  # nothing was really made
        install(environments, need(check=("/bin/true",)))
    assert "PATH=" in seen.read_text()
    assert "sekret" not in seen.read_text()


def test_a_missing_compiler_is_one_sentence(tmp_path: Path) -> None:
    environments = Environments(tmp_path, {"PATH": str(tmp_path)})
    with pytest.raises(EngineMissing, match=r"needs c\+\+, which is missing: install it"):
        environments.preflight(need(built_for=("AVX2",)))
    environments.preflight(need())


def test_a_build_for_another_processor_is_not_taken(tmp_path: Path) -> None:
    environments = Environments(tmp_path, os.environ)
    python = Path(environments.python(need()))
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    marker = {"packages": ["typing-extensions"], "built_for": ["AVX2"], "build_env": {}}
    (environments.path(need()) / MARKER).write_text(json.dumps(marker))
    assert environments.installed(need(built_for=("AVX2",)))
    assert not environments.installed(need(built_for=("AVX2", "AMX")))
