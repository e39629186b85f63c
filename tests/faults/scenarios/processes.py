"""Faults of processes: killed, stopped, escaped."""

from __future__ import annotations

import json
import os
import signal
import time

from tests.faults.lab import Lab, scenario


@scenario("F1", "fake")
def leader_killed(lab: Lab) -> None:
    room = lab.make("--tps", "20").start()
    before = room.engine()
    with room.stream("Hi", max_new_tokens=200) as events:
        next(events)
        began = time.monotonic()
        os.kill(before["pid"], signal.SIGKILL)
        rest = list(events)
        lab.took(time.monotonic() - began)
    assert "[DONE]" not in rest
    assert json.loads(rest[-1])["error"]["code"] == "engine_died"
    assert room.generate("again", max_new_tokens=2).status_code == 200
    assert room.engine()["pid"] != before["pid"]
