"""Faults on real engines: one life of each proves several rows, since it takes long to begin."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

import psutil

from tests.faults.lab import Lab, percentile, scenario
from tests.faults.scenarios.clients import port_of
from tests.faults.scenarios.shims import stopped_at_any_moment
from tests.faults.stories import broken, nearly_loaded, running, story, text
from tests.harness import ROOT, Room, until
from tests.streams import Answer, ask, request_bytes

DEMO = ROOT / "orchestrator" / "models" / "demo" / "demo.F16.gguf"
SMALL = ("--context", "512", "--users", "4")
PLACES = 300


@scenario("F29", "llama_server", also=("F14", "F20"))
def a_herd_then_a_lost_supervisor_then_a_restart(lab: Lab) -> None:
    room = lab.make(*SMALL, preload=False, max_queue=PLACES, queue_timeout_s=300).start()
    _herd(lab, room)
    assert len(room.events("model.load")) == 1
    _served_on(lab, room, 1)


@scenario("F29", "vllm", also=("F10", "F14", "F20"))
def stopped_while_it_loads_then_a_herd_and_the_rest(lab: Lab) -> None:
    """Its first whole start is the one that the herd waits for."""
    room = lab.make(*SMALL, preload=False, max_queue=PLACES, queue_timeout_s=300).start()
    stopped_at_any_moment(lab, room, load_s=25.0)
    room.admin("POST", "/admin/models/demo/start")
    launched = room.wait_state("starting")["generation"]
    _herd(lab, room)
    assert room.engine()["restarts"] == 0
    _served_on(lab, room, launched)


def _herd(lab: Lab, room: Room) -> None:
    """500 at once, 300 of which may wait while the model loads."""
    answers = asyncio.run(_all_at_once(port_of(room.url), 500))
    codes = Counter(each.status for each in answers)
    assert set(codes) <= {200, 429}, codes
    assert codes[200] >= PLACES
    refused = [each for each in answers if each.status == 429]
    assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
    lab.took(percentile([each.seconds for each in refused] or [0.0], 0.99), "F29")


async def _all_at_once(port: int, crowd: int) -> list[Answer]:
    one_token = request_bytes("Hi", max_new_tokens=1)
    return await asyncio.gather(*(ask(port, one_token) for _ in range(crowd)))


def _served_on(lab: Lab, room: Room, launched: int) -> None:
    assert [row["generation"] for row in room.engines()] == [launched]
    whole = text(story(room))
    _supervisor_killed(lab, room, whole)
    _restarted_under_load(lab, room, whole)


def _supervisor_killed(lab: Lab, room: Room, whole: str) -> None:
    before = {name: room.engine(name) for name in ("demo-0", "gateway-0")}
    for _ in range(3):
        with ThreadPoolExecutor(4) as many:
            streams = running(room, many, 4)
            room.kill()
            room.start()
            lab.took(room.ready["start_seconds"], "F14")
            assert [text(each.result()) for each in streams] == [whole] * 4
    for name, row in before.items():
        now = room.engine(name)
        assert (now["pid"], now["generation"]) == (row["pid"], row["generation"])


def _restarted_under_load(lab: Lab, room: Room, whole: str) -> None:
    """With one replica and memory for another: the new one is ready before the old one drains."""
    old = room.engine()["pid"]
    with clients(room, whole, 4) as press:
        began = time.monotonic()
        assert room.admin("POST", "/admin/models/demo/restart").status_code == 202
        until(lambda: nearly_loaded(room, {old}), 280, "another engine is about to serve")
        press()
        until(lambda: _replaced(room, old), 280, "another engine serves alone")
        seconds = time.monotonic() - began
    lab.took(seconds - _own_start(room), "F20")


@contextmanager
def clients(room: Room, whole: str, count: int) -> Iterator[Callable[[], None]]:
    """Clients that ask for one story after the other, each of which has to be whole.

    They pause between two until they are told to press: a machine of two cores that is kept busy by
    one engine starts no other.
    """
    pressing, over = threading.Event(), threading.Event()

    def client() -> int:
        done = 0
        while not over.is_set():
            assert text(story(room)) == whole
            done += 1
            pressing.wait(10)
        return done

    with ThreadPoolExecutor(count) as many:
        work = [many.submit(client) for _ in range(count)]
        try:
            yield pressing.set
        finally:
            over.set()
            pressing.set()
        assert all(each.result() > 0 for each in work)


def _replaced(room: Room, old: int) -> bool:
    (row, *others) = room.engines()
    return not others and row["state"] == "ready" and row["pid"] != old


def _own_start(room: Room) -> float:
    """Seconds that the newest engine took from its launch until it was ready."""
    name = room.engine()["id"]
    told = [each for each in room.events("engine.state") if each["subject"] == name]
    at = {each["detail"]["new"]: each["at"] for each in told}
    return float(at["ready"] - at["starting"])


@scenario("F1", "llama_server", also=("F7",))
def leader_killed_and_ended(lab: Lab) -> None:
    room = lab.make(*SMALL).start()
    leader_killed(lab, room)
    room.wait_state("ready", seconds=120)
    before = room.engine()
    began = time.monotonic()
    os.kill(before["pid"], signal.SIGINT)  # it answers with an exit of its own
    room.wait_generation(before["generation"] + 1)
    lab.took(time.monotonic() - began, "F7")
    room.wait_state("ready", seconds=120)


def leader_killed(lab: Lab, room: Room) -> None:
    """In the middle of four streams; the next launch is under way after it."""
    before = room.engine()
    leader = psutil.Process(before["pid"])
    tree = [leader, *leader.children(recursive=True)]
    with ThreadPoolExecutor(4) as many:
        streams = running(room, many, 4, tokens=470)
        began = time.monotonic()
        os.kill(leader.pid, signal.SIGKILL)
        assert any(broken(each.result()) for each in as_completed(streams))
        lab.took(time.monotonic() - began, "F1")
    until(lambda: not any(_alive(each) for each in tree), 5, "all of it is gone")
    room.wait_generation(before["generation"] + 1, 10)


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@scenario("F42", "llama_server")
def a_model_file_that_vanishes_or_lies(lab: Lab) -> None:
    path = lab.folder / "model.gguf"
    path.write_bytes(DEMO.read_bytes())
    room = lab.make(str(path), "--context", "512", half_open_s=60).start()
    path.write_bytes(DEMO.read_bytes()[:500_000])
    began = time.monotonic()
    os.kill(room.engine_of("model")["pid"], signal.SIGKILL)
    until(lambda: room.engine_of("model")["state"] == "failed", 30, "it fails for good")
    lab.took(time.monotonic() - began)
    row = room.engine_of("model")
    assert row["cause"] == "model_invalid"
    assert row["generation"] == 2
