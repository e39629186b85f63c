"""Engines in containers through the whole server; their faults are F43 and F44 of the matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runtimes.docker.labels import NAME
from tests.conftest import RoomMaker
from tests.containers import PYTHON, Engine
from tests.harness import Room, until

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture
def room_on(make_room: RoomMaker) -> Iterator[Callable[..., Room]]:
    """Servers over the fake engine in containers; the Docker Engine has none of them left."""
    made: list[tuple[Room, Engine]] = []

    def make(engine: Engine, *knobs: str, **settings: Any) -> Room:
        there = {"runtime": "docker", "engine_image": engine.image(), "engine_path": PYTHON}
        room = make_room(*knobs, name=f"data{len(made)}", serial=False, **there, **settings)
        room.env.update({**engine.env, "HF_TOKEN": "canary-of-a-secret"})
        made.append((room, engine))
        return room

    yield make
    for room, engine in made:
        room.close()
        if engine.answers():
            engine.remove_containers((room.data / "installation").read_text())


def containers_of(engine: Engine, room: Room) -> list[dict[str, Any]]:
    """The containers of a server's data directory."""
    return engine.containers((room.data / "installation").read_text())


def container(engine: Engine, room: Room) -> str:
    """The id of the only one."""
    (row,) = containers_of(engine, room)
    return str(row["Id"])


def test_it_serves_from_a_container_and_leaves_nothing(
    docker_engine: Engine, room_on: Callable[..., Room]
) -> None:
    room = room_on(docker_engine, "--tps", "0", api_keys="canary-of-a-secret").start()
    room.http.headers["authorization"] = "Bearer canary-of-a-secret"
    with room.stream("Hi", max_new_tokens=20) as events:
        assert list(events)[-1] == "[DONE]"
    row = room.engine()
    assert row["url"].startswith("http://")
    assert "127.0.0.1" not in row["url"]
    assert row["pid"]
    until(lambda: room.engine()["memory_measured"].get("ram", 0) > 1 << 20, 10, "it is measured")
    found = docker_engine.client.inspect_container(container(docker_engine, room))
    assert "canary" not in json.dumps(found)
    assert found["Config"]["Labels"][NAME] == "demo-0"
    assert all(each["RW"] is False for each in found["Mounts"])
    network = next(iter(found["NetworkSettings"]["Networks"]))
    assert room.stop() == 0
    assert containers_of(docker_engine, room) == []
    assert network not in [each["Name"] for each in docker_engine.client.networks()]


def test_a_stream_outlives_the_supervisor_and_the_engine_is_adopted(
    docker_engine: Engine, room_on: Callable[..., Room]
) -> None:
    room = room_on(docker_engine, "--tps", "20").start()
    before, id = room.engine(), container(docker_engine, room)
    with room.stream("Hi", max_new_tokens=100) as events:
        next(events)
        room.kill()
        room.launch()
        assert list(events)[-1] == "[DONE]"
    room.wait_ready()
    after = room.engine()
    assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
    assert container(docker_engine, room) == id
    assert len(room.events("engine.adopted")) == 2  # the gateway too
    assert room.generate("again", max_new_tokens=2).status_code == 200


def test_without_a_docker_engine_the_start_says_what_is_missing(
    make_room: RoomMaker, tmp_path: Path
) -> None:
    there = {"runtime": "docker", "engine_image": "any", "engine_path": PYTHON}
    room = make_room(**there)
    room.env["DOCKER_HOST"] = f"unix://{tmp_path}/none.sock"
    room.launch()
    assert room.wait_end() == 70
    said = room.log.read_text()
    assert f"the Docker Engine at unix://{tmp_path}/none.sock does not answer" in said
    assert "DOCKER_HOST" in said
