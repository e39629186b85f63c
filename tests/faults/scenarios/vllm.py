"""Ways in which parts of vLLM end or hang: each start of it proves the end of the one before."""

from __future__ import annotations

import json
import time

import psutil

from tests.faults.lab import Lab, scenario
from tests.faults.scenarios.health import STALLS, stopped_in_a_stream, streaming
from tests.faults.scenarios.real import leader_killed
from tests.faults.scenarios.shims import shim_of
from tests.harness import SLACK, Room, look, until, watched_by


@scenario("F4", "vllm", also=("F1", "F2", "F7"))
def one_part_after_the_other(lab: Lab) -> None:
    """No two of them under the same request body: it would be blamed for both."""
    room = lab.make("--users", "4", hang_timeout_s=12, restart_limit=10, backoff_max_s=1)
    room.start(400)
    _core_stopped(lab, room)
    _core_killed(lab, room)
    room.wait_state("ready", seconds=400)
    _ended_by_a_stranger(lab, room)
    room.wait_state("ready", seconds=400)
    leader_killed(lab, room)


def _core_stopped(lab: Lab, room: Room) -> None:
    """Its server answers on behind it, with health 200 and all metrics."""
    row = room.engine()

    def answers() -> None:
        for path in ("/health", "/metrics"):
            assert look(row["url"] + path).status_code == 200

    stopped_in_a_stream(lab, room, _core(room), answers)
    assert room.metric(STALLS, replica=row["id"], kind="work") == 1
    assert room.metric(STALLS, replica=row["id"], kind="probes") == 0


def _core_killed(lab: Lab, room: Room) -> None:
    """Left alone the server notices its core's end after five seconds, and exits with 0."""
    before, core = room.engine(), _core(room)
    leader = psutil.Process(before["pid"])
    parts = [leader, *leader.children(recursive=True)]
    until(lambda: core.pid in watched_by(shim_of(room).pid), 20, "the shim holds it")
    with streaming(room, words=1000) as events:
        began = time.monotonic()
        core.kill()
        rest = list(events)
    until(lambda: not any(each.is_running() for each in parts), 10, "all are gone")
    ended = time.monotonic()
    lab.took(ended - began, "F2")
    assert "error" in json.loads(rest[-1])
    room.wait_generation(before["generation"] + 1)
    lab.took(time.monotonic() - ended, "F7")
    assert room.metric("engineroom_engine_restarts_total", cause="killed") == 1


def _ended_by_a_stranger(lab: Lab, room: Room) -> None:
    before = room.engine()
    leader = psutil.Process(before["pid"])
    leader.terminate()
    leader.wait(20 * SLACK)
    ended = time.monotonic()
    room.wait_generation(before["generation"] + 1)
    lab.took(time.monotonic() - ended, "F7")
    assert room.metric("engineroom_engine_restarts_total", cause="exit_unrequested") == 1


def _core(room: Room) -> psutil.Process:
    parts = psutil.Process(room.engine()["pid"]).children()
    (core,) = [each for each in parts if each.cmdline()[0].startswith("VLLM::EngineCore")]
    return core
