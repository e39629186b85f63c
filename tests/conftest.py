"""Fixtures for every level: servers over the fake engine, and over the real one."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from engine_launchers.base import EngineName
from orchestrator.advice import without_gpus
from orchestrator.compiled import compiled
from orchestrator.engines.choosing import requirement
from orchestrator.engines.shelf import Engine, Shelf
from orchestrator.hardware import probe
from orchestrator.settings import load_settings
from tests import containers
from tests.harness import Room, clean_env, fake_room, free_ports, processes_of

# An example that takes long on a busy machine is right all the same.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

RoomMaker = Callable[..., Room]
Installed = Callable[[EngineName], Engine]


def pytest_configure() -> None:
    """Tests of a compiled module whose source has changed would be tests of what is gone."""
    if compiled().stale:
        raise pytest.UsageError("compiled modules have other sources now: make compiled or pure")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in set(os.environ) - set(clean_env()):
        monkeypatch.delenv(name)


@pytest.fixture
def make_room(tmp_path: Path) -> Iterator[RoomMaker]:
    """Servers over the fake engine: `make_room("--tps", "20", max_queue=3)`."""
    made: list[Room] = []

    def make(*knobs: str, name: str = "data", **settings: object) -> Room:
        room = fake_room(tmp_path / name, *knobs, **settings)  # type: ignore[arg-type]
        made.append(room)
        return room

    yield make
    for room in made:
        room.close()
    assert processes_of(str(tmp_path)) == []


@pytest.fixture(scope="session")
def shelf() -> Shelf:
    """The real engines of this machine, where the command puts them too."""
    settings = load_settings({}, env={})
    return Shelf(settings.engines, os.environ, cache=settings.cache)


@pytest.fixture(scope="session")
def installed(shelf: Shelf, pytestconfig: pytest.Config) -> Installed:
    """`installed("vllm")`: that engine, really installed, once per machine."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    hardware = without_gpus(probe(), "tests run on the processor")

    def install(name: EngineName) -> Engine:
        said = time.monotonic()

        def progress(line: str, seconds: float) -> None:
            nonlocal said
            if time.monotonic() - said > 15:
                said = time.monotonic()
                with capture.global_and_fixture_disabled():
                    sys.stderr.write(f"\n[{seconds:.0f} s] installing {name}: {line[:100]}\n")

        return asyncio.run(shelf.install(requirement(shelf.table, name, hardware), progress))

    return cache(install)


@pytest.fixture(scope="session")
def engines_dir(shelf: Shelf, installed: Installed) -> Path:
    """The folder with both real llama.cpp engines, installed once per machine."""
    installed("llama_server")
    installed("llama_cpp")
    return shelf.folder


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[containers.Engine]:
    """The Docker Engine of this machine, else one that is started for the tests."""
    with containers.docker_engine() as found:
        yield found


@pytest.fixture(scope="session")
def python_image(docker_engine: containers.Engine) -> str:
    """An image with this interpreter, at the path that it has here."""
    return docker_engine.image()


def real_room(data: Path, engines: Path, *flags: str) -> Room:
    """`engineroom serve` with the real engine and the demo model."""
    port, admin_port = free_ports(2)
    command = [sys.executable, "-m", "orchestrator", "serve", "--json", "--port", str(port)]
    command += ["--admin-port", str(admin_port), "--data-dir", str(data), *flags]
    return Room(data, command, clean_env(ENGINEROOM_ENGINES_DIR=str(engines)))


@pytest.fixture
def make_real_room(tmp_path: Path, engines_dir: Path) -> Iterator[RoomMaker]:
    """Servers over the real engine: `make_real_room("--max-queue", "3")`."""
    made: list[Room] = []

    def make(*flags: str) -> Room:
        made.append(real_room(tmp_path / "data", engines_dir, *flags))
        return made[-1]

    yield make
    for room in made:
        room.close()
    assert processes_of(str(tmp_path)) == []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, engines_dir: Path) -> Iterator[Room]:
    """One running server over the real engine, for tests that do not disturb it."""
    folder = tmp_path_factory.mktemp("real")
    room = real_room(folder / "data", engines_dir).start()
    yield room
    room.close()
    assert processes_of(str(folder)) == []
