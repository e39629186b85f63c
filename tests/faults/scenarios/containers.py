"""Faults of containers and of the Docker Engine that has them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.containers import PYTHON, Engine, docker_engine, engine_beside
from tests.faults.lab import Lab, scenario
from tests.harness import Room, until, within


@contextmanager
def served(lab: Lab, engine: Engine, *knobs: str, **settings: object) -> Iterator[Room]:
    """A server over the fake engine in a container; the Docker Engine has none of it left."""
    there = {"runtime": "docker", "engine_image": engine.image(), "engine_path": PYTHON}
    room = lab.make(*knobs, serial=False, **there, **settings)
    room.env.update(engine.env)
    try:
        yield room.start()
    finally:
        room.close()
        if engine.answers():
            engine.remove_containers((room.data / "installation").read_text())


def _container(engine: Engine, room: Room) -> str:
    (row,) = engine.containers((room.data / "installation").read_text())
    return str(row["Id"])


def _dies_in_a_stream(lab: Lab, how: Callable[[Engine, str], None]) -> None:
    with docker_engine() as engine, served(lab, engine, "--tps", "20") as room:
        before, id = room.engine(), _container(engine, room)
        with room.stream("Hi", max_new_tokens=200) as events:
            next(events)
            began = time.monotonic()
            how(engine, id)
            rest = list(events)
            room.wait_generation(before["generation"] + 1, lab.row.bound_s)
            lab.took(time.monotonic() - began)
        assert "[DONE]" not in rest
        assert json.loads(rest[-1])["error"]["code"] == "engine_died"
        assert room.generate("again", max_new_tokens=2).status_code == 200
        assert _container(engine, room) != id


@scenario("F44", "container")
def it_is_killed(lab: Lab) -> None:
    _dies_in_a_stream(lab, lambda engine, id: engine.client.kill(id))


@scenario("F44", "container")
def it_is_removed(lab: Lab) -> None:
    _dies_in_a_stream(lab, lambda engine, id: engine.client.remove_container(id, force=True))


@scenario("F44", "container")
def it_is_paused(lab: Lab) -> None:
    # No event tells of an engine that stands still: probes do, as of a process (F4).
    times = {"probe_interval_s": 0.2, "probe_timeout_s": 0.4, "stop_grace_s": 1}
    with docker_engine() as engine, served(lab, engine, "--tps", "20", **times) as room:
        before = room.engine()
        engine.client.pause(_container(engine, room))
        with within(6, "it is ended and launched again"):
            room.wait_generation(before["generation"] + 1, 6)
        assert room.wait_state("ready")["cause"] in {None, "unresponsive"}
        assert room.generate("again", max_new_tokens=2).status_code == 200


@scenario("F44", "container")
def its_memory_is_over(lab: Lab) -> None:
    limit = ("--memory-max", str(256 << 20))
    with docker_engine() as engine, served(lab, engine, *limit) as room:
        answer = room.generate('Hi fake={"eat_after_tokens": 2}', max_new_tokens=50)
        began = time.monotonic()
        assert answer.status_code == 502
        room.wait_generation(2)
        lab.took(time.monotonic() - began)
        room.wait_state("ready")
        told = [each["detail"]["why"] for each in room.events("engine.state")]
        assert any("killed by the kernel for memory" in why for why in told)
        assert room.engine()["rung"] == 1


def _back(room: Room) -> bool:
    return bool(room.events("runtime.back"))


@scenario("F43", "container")
def docker_is_killed_with_live_restore(lab: Lab) -> None:
    with engine_beside("--live-restore") as engine, served(lab, engine, "--tps", "20") as room:
        before = room.engine()
        with room.stream("Hi", max_new_tokens=100) as events:
            next(events)
            engine.end(signal.SIGKILL)
            engine.up()
            began = time.monotonic()
            until(lambda: _back(room), lab.row.bound_s, "it is told")
            lab.took(time.monotonic() - began)
            assert list(events)[-1] == "[DONE]"
        after = room.engine()
        assert (after["pid"], after["restarts"]) == (before["pid"], 0)
        assert room.generate("again", max_new_tokens=2).status_code == 200
        assert room.stop() == 0


@scenario("F43", "container")
def docker_is_stopped_and_its_containers_with_it(lab: Lab) -> None:
    with engine_beside() as engine, served(lab, engine, "--tps", "20") as room:
        before = room.engine()
        engine.end()
        engine.up()
        began = time.monotonic()
        room.wait_generation(before["generation"] + 1, 10)
        lab.took(time.monotonic() - began)
        room.wait_state("ready", seconds=20)
        assert room.generate("again", max_new_tokens=2).status_code == 200
        assert room.stop() == 0


@scenario("F43", "container")
def the_server_is_stopped_while_docker_is_away(lab: Lab) -> None:
    with engine_beside("--live-restore") as engine, served(lab, engine, "--tps", "20") as room:
        before, id = room.engine(), _container(engine, room)
        engine.end(signal.SIGKILL)
        until(lambda: room.events("runtime.lost"), 10, "it is told")
        with within(2 + 5 + 3, "grace, margin, and all the rest"):
            assert room.stop(20) == 0
        assert room.processes_named("gateway") == []
        engine.up()
        assert _container(engine, room) == id
        room.start()
        (left,) = room.events("engine.left")
        assert "does not answer" in left["detail"]["why"]
        after = room.engine()
        assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
        assert room.generate("again", max_new_tokens=2).status_code == 200
        assert room.stop() == 0


@scenario("F43", "container")
def docker_stands_still(lab: Lab) -> None:
    with engine_beside() as engine, served(lab, engine, "--tps", "20") as room:
        before = room.engine()
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            with room.stream("Hi", max_new_tokens=20) as events:
                assert list(events)[-1] == "[DONE]"
            until(lambda: room.events("runtime.lost"), 20, "a call to it had its time")
            assert room.generate("still", max_new_tokens=2).status_code == 200
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        began = time.monotonic()
        until(lambda: _back(room), lab.row.bound_s, "it is told")
        lab.took(time.monotonic() - began)
        after = room.engine()
        assert (after["pid"], after["restarts"]) == (before["pid"], 0)
        assert room.stop() == 0
