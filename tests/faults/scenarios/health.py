"""Faults of health: hangs behind a living server, honest slowness, starts that stall."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psutil

from tests.faults.lab import Lab, scenario
from tests.harness import Room, look, until

STALLS = "engineroom_engine_stalls_total"


@contextmanager
def streaming(room: Room, words: int = 2000) -> Iterator[Iterator[str]]:
    """A stream that has begun."""
    with room.stream("Tell me a long story about the shop.", max_new_tokens=words) as events:
        assert "error" not in json.loads(next(events))
        yield events


def assert_broke(room: Room, rest: list[str], before: dict[str, Any]) -> None:
    """One error and no `[DONE]`; then another engine, which answers."""
    assert "[DONE]" not in rest
    assert json.loads(rest[-1])["error"]["code"] in {"engine_died", "engine_stalled"}
    room.wait_generation(before["generation"] + 1)
    room.wait_state("ready", seconds=240)
    assert room.generate("again", max_new_tokens=2).status_code == 200
    assert room.engine()["pid"] != before["pid"]
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(before["pid"]).status() == psutil.STATUS_ZOMBIE


@scenario("F4", "fake")
def generations_stand_still(lab: Lab) -> None:
    """Behind a server that answers: the canary of the doubt is not answered either."""
    room = lab.make("--tps", "50", serial=False, hang_timeout_s=1.5).start()
    before = room.engine()
    with streaming(room) as events:
        os.kill(before["pid"], signal.SIGUSR2)
        began = time.monotonic()
        assert look(before["url"] + "/docs").status_code == 200
        rest = list(events)
        lab.took(time.monotonic() - began)
        assert_broke(room, rest, before)
    assert room.metric(STALLS, replica="demo-0", kind="work") == 1


@scenario("F4", "llama_server")
def all_of_it_is_stopped(lab: Lab) -> None:
    room = lab.make(hang_timeout_s=12).start(300)
    stopped_in_a_stream(lab, room, psutil.Process(room.engine()["pid"]))
    kinds = [room.metric(STALLS, replica="demo-0", kind=kind) for kind in ("work", "probes")]
    assert sum(kinds) == 1


def stopped_in_a_stream(
    lab: Lab, room: Room, part: psutil.Process, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """SIGSTOP of a process of the engine; `meanwhile` may look at what is left."""
    before = room.engine()
    with streaming(room) as events:
        part.suspend()
        began = time.monotonic()
        meanwhile()
        rest = list(events)
        lab.took(time.monotonic() - began, "F4")
        assert_broke(room, rest, before)
    assert not part.is_running()


@scenario("F5", "fake")
def honest_prefills_are_left_alone(lab: Lab) -> None:
    """One that counts, one that only computes, and one that shows nothing but sings in doubt."""
    room = lab.make("--no-cancel", serial=False, hang_timeout_s=0.9).start()
    before = room.engine()
    for knobs in ({"prefill_counts": True}, {"prefill_burns": True}, {}):
        began = time.monotonic()
        prompt = "Hi fake=" + json.dumps({"prefill_s": 2.0, **knobs})
        assert room.generate(prompt, max_new_tokens=2).status_code == 200, knobs
        lab.took(time.monotonic() - began)
    after = room.engine()
    assert (after["pid"], after["state"], after["restarts"]) == (before["pid"], "ready", 0)
    assert room.metric(STALLS, kind="work") == 0


@scenario("F5", "fake")
def a_serial_engine_is_judged_by_its_processor_time(lab: Lab) -> None:
    room = lab.make("--no-metrics", serial=True, hang_timeout_s=0.9).start()
    before = room.engine()
    prompt = "Hi fake=" + json.dumps({"prefill_s": 2.0, "prefill_burns": True})
    began = time.monotonic()
    assert room.generate(prompt, max_new_tokens=2).status_code == 200
    lab.took(time.monotonic() - began)
    assert room.engine()["restarts"] == 0
    prompt = "Hi fake=" + json.dumps({"prefill_s": 60.0})
    assert room.generate(prompt, max_new_tokens=2).status_code == 502
    room.wait_generation(before["generation"] + 1)


@scenario("F6", "fake")
def it_takes_connections_and_never_answers(lab: Lab) -> None:
    room = lab.make(probe_interval_s=0.2, probe_timeout_s=0.4).start()
    before, stalls = room.engine(), partial(room.metric, STALLS, replica="demo-0", kind="probes")
    known = stalls()
    os.kill(before["pid"], signal.SIGUSR1)
    began = time.monotonic()
    room.wait_generation(before["generation"] + 1)
    lab.took(time.monotonic() - began)
    room.wait_state("ready")
    assert room.generate("x", max_new_tokens=1).status_code == 200
    assert stalls() > known


@scenario("F7", "fake")
def it_exits_with_0_unasked(lab: Lab) -> None:
    room = lab.make("--tps", "50", "--graceful-exit-0").start()
    before = room.engine()
    with streaming(room) as events:
        os.kill(before["pid"], signal.SIGTERM)
        began = time.monotonic()
        room.wait_generation(before["generation"] + 1)
        lab.took(time.monotonic() - began)
        assert_broke(room, list(events), before)
    assert room.metric("engineroom_engine_restarts_total", cause="exit_unrequested") == 1


@scenario("F26", "fake")
def a_slow_start_that_gets_on_is_waited_for(lab: Lab) -> None:
    room = lab.make("--load-s", "3", start_stall_s=1)
    room.launch()
    row = until(partial(loading, room), 20, "it says how far it is")
    assert (row["state"], row["loading"]["phase"]) == ("starting", "loading")
    assert 20 <= row["loading"]["percent"] < 100
    row = room.wait_state("ready")
    assert (row["restarts"], row["loading"]) == (0, None)


def loading(room: Room) -> dict[str, Any] | None:
    """The row of an engine whose start is watched."""
    if not (room.data / "endpoints.json").exists():
        return None
    room.ready = json.loads((room.data / "endpoints.json").read_text())
    for row in room.engines():
        if row["loading"] and row["loading"]["seconds"] > 1:
            return row
    return None


@scenario("F26", "fake")
def a_start_that_shows_nothing_is_given_up(lab: Lab) -> None:
    room = lab.make("--load-s", "60", "--silent-load", start_stall_s=1.5, restart_limit=0)
    room.launch()
    assert room.wait_end(30) == 70
    log = room.log.read_text()
    assert "start_stalled" in log
    assert "nothing logged, read or loaded for" in log
    started, ended = (at(log, "demo-0", f"new={state}") for state in ("starting", "stopping"))
    lab.took(ended - started)
    assert room.processes() == []


def at(log: str, *words: str) -> float:
    """Seconds of the day of the first line with all these words."""
    line = next(x for x in log.splitlines() if all(word in x for word in words))
    hours, minutes, seconds = line.split()[0].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
