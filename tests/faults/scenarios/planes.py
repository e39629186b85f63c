"""Faults of the planes themselves: the gateway killed, the supervisor stopped for a while."""

from __future__ import annotations

import os
import signal
import time

import httpx

from tests.faults.lab import Lab, scenario
from tests.harness import look, until, within
from tests.streams import check_stream


@scenario("F18", "fake")
def gateway_killed(lab: Lab) -> None:
    """Its streams are lost with it; the engine stays, and works for nobody any more."""
    room = lab.make("--tps", "20", serial=False).start()
    engine, gateway = room.engine(), room.engine("gateway-0")
    stats = engine["url"] + "/stats"
    with room.stream("Hi", max_new_tokens=500) as events, httpx.Client(trust_env=False) as asking:
        next(events)
        began = time.monotonic()

        def served() -> bool:
            body = {"prompt": "again", "max_new_tokens": 1}
            try:
                return asking.post(f"{room.url}/generate", json=body).status_code == 200
            except httpx.TransportError:
                return False

        with within(5, "the engine is idle"):
            os.kill(gateway["pid"], signal.SIGKILL)
            until(served, 20, "a new gateway serves")
            lab.took(time.monotonic() - began)
            until(lambda: not look(stats).json()["running"], 5, "the engine is idle")
    after = room.engine()
    assert (after["pid"], after["restarts"]) == (engine["pid"], 0)
    assert room.engine("gateway-0")["pid"] != gateway["pid"]


@scenario("F37", "fake")
def supervisor_stopped_for_a_while(lab: Lab) -> None:
    """Longer than three probes' limits. Streams run on; awake again it looks before it acts."""
    room = lab.make("--tps", "20", serial=False, probe_interval_s=0.2, probe_timeout_s=0.5).start()
    before = room.engine(), room.engine("gateway-0")
    assert room.process is not None
    with room.stream("Hi", max_new_tokens=60) as events:
        came = [next(events)]
        os.kill(room.process.pid, signal.SIGSTOP)
        try:
            came += [next(events) for _ in range(40)]  # two seconds of somebody else's time
            assert room.generate("meanwhile", max_new_tokens=1).status_code == 200
        finally:
            os.kill(room.process.pid, signal.SIGCONT)
        began = time.monotonic()
        room.wait_state("ready", seconds=5)
        room.wait_state("ready", "gateway-0", seconds=5)
        lab.took(time.monotonic() - began)
        came += list(events)  # a second in which it could do harm
    check_stream(came, 60)
    for old, name in zip(before, ("demo-0", "gateway-0"), strict=True):
        new = room.engine(name)
        assert (new["pid"], new["generation"], new["restarts"]) == (
            old["pid"], old["generation"], old["restarts"],
        )  # fmt: skip
