"""Long runs of three promises, too long for the suite: each stream of each run is checked.

    python -m tests.faults.soak supervisor --runs 200 --streams 50
    python -m tests.faults.soak drains --runs 100 --streams 200
    python -m tests.faults.soak turns --minutes 5

`supervisor` kills the supervisor under streams of the fake engine and starts it again; `drains`
restarts a model of two replicas under streams; `turns` lets four clients alternate between two real
llama.cpp models that may not be in memory together. One line of JSON tells what was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from orchestrator.settings import load_settings
from tests.conftest import real_room
from tests.faults.lab import percentile
from tests.harness import Room, eventually, fake_room, until
from tests.streams import ask, check_stream, request_bytes

TOKENS = 40


@contextmanager
def room_of(*knobs: str, **settings: Any) -> Iterator[Room]:
    """A server over the fake engine, which leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        room = fake_room(Path(folder) / "data", *knobs, serial=False, **settings).start()
        try:
            yield room
        finally:
            room.close()
        assert room.processes() == []


async def stream(port: int) -> None:
    """One stream of TOKENS tokens, none lost, doubled or cut."""
    data = request_bytes("Hi", "/generate_stream", max_new_tokens=TOKENS)
    answer = await ask(port, data)
    assert answer.status == 200, answer
    lines = answer.body.decode().splitlines()
    check_stream([line.partition("data: ")[2] for line in lines if "data: " in line], TOKENS)


def port_of(room: Room) -> int:
    """The gateway's port."""
    return int(room.url.rsplit(":", 1)[1])


async def supervisor(runs: int, streams: int) -> dict[str, Any]:
    """Seconds until everything was adopted again."""
    took: list[float] = []
    with room_of("--tps", "20", "--slots", str(streams)) as room:
        before = room.engine()
        for _ in range(runs):
            work = [asyncio.create_task(stream(port_of(room))) for _ in range(streams)]
            await eventually(lambda: room.engine()["in_flight"] == streams, 30, "all run")
            await asyncio.to_thread(room.kill)
            await asyncio.to_thread(room.start)
            took.append(room.ready["start_seconds"])
            await asyncio.gather(*work)
        after = room.engine()
        assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
    return {"runs": runs, "streams": runs * streams, "lost": 0, **_told("adopted", took)}


async def drains(runs: int, streams: int) -> dict[str, Any]:
    """Seconds until both replicas were new ones, `streams` running all the time."""
    took: list[float] = []
    done = 0
    ending = False

    async def client() -> None:
        nonlocal done
        while not ending:
            await stream(port_of(room))
            done += 1

    with room_of("--tps", "10", "--slots", str(streams), replicas=2, drain_s=60) as room:
        work = [asyncio.create_task(client()) for _ in range(streams)]
        for _ in range(runs):
            old = {row["pid"] for row in room.engines()}
            began = time.monotonic()
            assert room.admin("POST", "/admin/models/demo/restart").status_code == 202
            await eventually(partial(_all_new, room, old), 120, "both are new")
            took.append(time.monotonic() - began)
            assert not any(each.done() for each in work), "a stream broke"
        ending = True
        await asyncio.gather(*work)
    return {"runs": runs, "streams": done, "lost": 0, **_told("replaced", took)}


def _all_new(room: Room, old: set[int]) -> bool:
    rows = room.engines()
    return len(rows) == 2 and all(r["state"] == "ready" and r["pid"] not in old for r in rows)


def turns(minutes: float) -> dict[str, Any]:
    """Two real models in one group, four clients that alternate between them."""
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        file = Path(folder) / "engineroom.yaml"
        both = "".join(f"  - {{model: demo, name: {n}, group: g, context: 512}}\n" for n in "ab")
        file.write_text(f"models:\n{both}")
        engines = load_settings({}, {}).engines
        room = real_room(Path(folder) / "data", engines, "--config", str(file)).start()
        try:
            return _turns(room, minutes * 60)
        finally:
            room.close()


def _turns(room: Room, seconds: float) -> dict[str, Any]:
    ends = time.monotonic() + seconds
    waits: list[float] = []
    failures: list[str] = []

    def client(names: str) -> None:
        with httpx.Client(timeout=120, trust_env=False) as http:
            while time.monotonic() < ends:
                for name in names:
                    began = time.monotonic()
                    body = {"prompt": "Hi", "model": name, "max_new_tokens": 20}
                    answer = http.post(f"{room.url}/generate", json=body)
                    waits.append(time.monotonic() - began)
                    if answer.status_code != 200:
                        failures.append(answer.text)

    clients = [threading.Thread(target=client, args=(names,)) for names in ("ab", "ba", "ab", "ba")]
    for each in clients:
        each.start()
    until(lambda: not any(each.is_alive() for each in clients), seconds + 150, "all are done")
    loads, unloads = room.events("model.load"), room.events("model.unload")
    unexplained = [each for each in (*loads, *unloads) if not each["detail"].get("why")]
    assert not failures, failures[:3]
    assert not unexplained
    return {"requests": len(waits), "failures": 0, "loads": len(loads), **_told("answered", waits)}


def _told(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50_s": round(percentile(seconds, 0.5), 3),
        f"{name}_p99_s": round(percentile(seconds, 0.99), 3),
        f"{name}_max_s": round(max(seconds), 3),
    }


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("supervisor", "drains", "turns"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    given = parser.parse_args()
    if given.what == "turns":
        found = turns(given.minutes)
    else:
        run = supervisor if given.what == "supervisor" else drains
        found = asyncio.run(run(given.runs, given.streams))
    sys.stdout.write(json.dumps({"what": given.what, **found}) + "\n")


if __name__ == "__main__":
    main()
