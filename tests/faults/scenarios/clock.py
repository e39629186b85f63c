"""The wall clock jumps: nothing but the time that is shown may change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tests.clocks import MovedClock
from tests.faults.lab import Lab, scenario
from tests.harness import Room

HOUR = 3600


def _shown(room: Room) -> float:
    """How far the supervisor's clock is ahead of ours, by an event that we cause now."""
    room.admin("POST", "/admin/models/demo/start")
    latest = room.admin("GET", "/admin/events?limit=1").json()["events"][0]
    return float(latest["at"]) - time.time()


def _longest_pause(events: Iterator[str], count: int) -> float:
    """Seconds between two of the next `count` tokens, at most."""
    times = [time.monotonic()]
    for _ in range(count):
        assert '"token"' in next(events)
        times.append(time.monotonic())
    return max(b - a for a, b in pairwise(times))


@scenario("F36", "fake")
def wall_clock_jumps(lab: Lab) -> None:
    room = lab.make("--tps", "30", lease_s=2, probe_interval_s=0.2, serial=False, drain_s=0)
    clock = MovedClock(room.data.parent / "clock")
    room.command = (str(clock.python), *room.command[1:])
    room.start()
    before = {name: room.engine(name) for name in ("demo-0", "gateway-0")}
    for each in room.processes():
        assert "clock.so" in Path(f"/proc/{each.pid}/maps").read_text(), each
    began = time.monotonic()
    with room.stream("Hi", max_new_tokens=202) as events:
        for jump in (HOUR, -HOUR, 0):
            clock.move(jump)
            assert abs(_shown(room) - jump) < HOUR / 60
            lab.took(_longest_pause(events, 66))  # longer than a lease, and many probes
            assert room.generate("beside it", max_new_tokens=1).status_code == 200
        assert list(events)[-1] == "[DONE]"
    for name, was in before.items():
        now = room.engine(name)
        same = ("pid", "generation", "restarts", "state")
        assert [now[key] for key in same] == [was[key] for key in same]
        assert was["uptime_s"] < now["uptime_s"] < was["uptime_s"] + time.monotonic() - began + 60
    states = room.admin("GET", "/admin/events?type=engine").json()["events"]
    assert {each["detail"]["new"] for each in states} == {"starting", "ready"}
