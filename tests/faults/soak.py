"""Long runs of four promises, too long for the suite: each stream of each run is checked.

    python -m tests.faults.soak gateway --minutes 60
    python -m tests.faults.soak supervisor --runs 200 --streams 50
    python -m tests.faults.soak drains --runs 100 --streams 200
    python -m tests.faults.soak supervisor --runs 10 --streams 16 --engine llama_server
    python -m tests.faults.soak drains --runs 5 --streams 16 --engine vllm --replicas 1
    python -m tests.faults.soak turns --minutes 5

`gateway` is asked all kinds of things and may not grow; `supervisor` kills the supervisor under
streams and starts it again; `drains` restarts a model under streams; `turns` lets four clients
alternate between two real llama.cpp models that may not be in memory together. The streams of the
fake engine carry numbers; those of a real one are greedy and have to say what they said before.
One line of JSON tells what was measured.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from orchestrator.settings import load_settings
from tests.conftest import real_room
from tests.faults.lab import percentile
from tests.faults.mixed import grew, mixed
from tests.faults.stories import PROMPT, nearly_loaded, story, text
from tests.harness import Room, eventually, fake_room, until
from tests.streams import ask, check_stream, request_bytes

TOKENS = 40
STORY_TOKENS = 200  # a real engine is still at it when its supervisor is back
_PAUSE_S = 10.0
_GREEDY = {"max_new_tokens": STORY_TOKENS, "do_sample": False}


@dataclass(frozen=True)
class Soak:
    """What is asked for."""

    runs: int
    streams: int
    engine: str
    replicas: int


@contextmanager
def room_of(soak: Soak, tps: int, **settings: Any) -> Iterator[Room]:
    """A server over the engine, which leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        data, count = Path(folder) / "data", str(soak.streams)
        settings = {"replicas": soak.replicas, **settings}
        if soak.engine == "fake":
            knobs = ("--tps", str(tps), "--slots", count)
            room = fake_room(data, *knobs, serial=False, **settings)
        else:
            flags = ("--engine", soak.engine, "--context", "512", "--users", count)
            room = real_room(data, load_settings({}, {}).engines, *flags)
            room.env.update({f"ENGINEROOM_{k.upper()}": str(v) for k, v in settings.items()})
        try:
            yield room.start(600)
        finally:
            room.close()
        assert room.processes() == []


class Streams:
    """Streams of one room, each of which has to be whole."""

    def __init__(self, room: Room, engine: str) -> None:
        self._port, self._fake = int(room.url.rsplit(":", 1)[1]), engine == "fake"
        self._known = "" if self._fake else text(story(room, STORY_TOKENS))
        self.whole = 0

    async def one(self, begun: asyncio.Event | None = None) -> None:
        """One stream: none of its tokens lost, doubled or cut."""
        fields = {"max_new_tokens": TOKENS} if self._fake else _GREEDY
        data = request_bytes("Hi" if self._fake else PROMPT, "/generate_stream", **fields)
        answer = await ask(self._port, data, begun=begun)
        assert answer.status == 200, answer
        lines = answer.body.decode().splitlines()
        payloads = [line.partition("data: ")[2] for line in lines if "data: " in line]
        if self._fake:
            check_stream(payloads, TOKENS)
        else:
            assert text(payloads) == self._known, payloads
        self.whole += 1


async def supervisor(soak: Soak) -> dict[str, Any]:
    """Seconds until everything was adopted again."""
    took: list[float] = []
    live: list[int] = []
    with room_of(soak, tps=20) as room:
        streams, before = Streams(room, soak.engine), room.engine()
        for _ in range(soak.runs):
            begun = [asyncio.Event() for _ in range(soak.streams)]
            work = [asyncio.create_task(streams.one(each)) for each in begun]
            await asyncio.gather(*(each.wait() for each in begun))
            live.append(sum(not each.done() for each in work))
            await asyncio.to_thread(room.kill)
            await asyncio.to_thread(room.start)
            took.append(room.ready["start_seconds"])
            await asyncio.gather(*work)
        after = room.engine()
        assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
    told = {"streams": streams.whole, "fewest_live": min(live), "lost": 0}
    return {**told, **_told("adopted", took)}


async def drains(soak: Soak) -> dict[str, Any]:
    """Seconds until all replicas were new ones, `streams` running all the time.

    Before real engines clients pause between two streams until the new engine is about to serve: a
    machine of two cores that is kept busy by one starts no other.
    """
    took: list[float] = []
    ending = False
    pressing = asyncio.Event()

    async def client() -> None:
        while not ending:
            await streams.one()
            with suppress(TimeoutError):
                await asyncio.wait_for(pressing.wait(), _PAUSE_S)

    with room_of(soak, tps=10, drain_s=600) as room:
        streams = Streams(room, soak.engine)
        work = [asyncio.create_task(client()) for _ in range(soak.streams)]
        for _ in range(soak.runs):
            old = {row["pid"] for row in room.engines()}
            began = time.monotonic()
            assert room.admin("POST", "/admin/models/demo/restart").status_code == 202
            if soak.engine != "fake":
                await eventually(partial(nearly_loaded, room, old), 600, "one is about to serve")
            pressing.set()
            await eventually(partial(_all_new, room, old), 600, "all are new")
            took.append(time.monotonic() - began)
            if soak.engine != "fake":
                pressing.clear()
            assert not [each.result() for each in work if each.done()], "a stream broke"
        ending = True
        pressing.set()
        await asyncio.gather(*work)
    return {"streams": streams.whole, "lost": 0, **_told("replaced", took)}


def _all_new(room: Room, old: set[int]) -> bool:
    rows = room.engines()
    fresh = [row for row in rows if row["state"] == "ready" and row["pid"] not in old]
    return len(rows) == len(fresh) == len(old)


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
    parser.add_argument("what", choices=("gateway", "supervisor", "drains", "turns"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--engine", choices=("fake", "llama_server", "vllm"), default="fake")
    parser.add_argument("--replicas", type=int, default=None, help="2 for drains, else 1")
    given = parser.parse_args()
    if given.what in ("gateway", "turns"):
        found = (
            asyncio.run(mixed(given.minutes)) if given.what == "gateway" else turns(given.minutes)
        )
        sys.stdout.write(json.dumps({"what": given.what, **found}) + "\n")
        sys.exit(given.what == "gateway" and grew(found))
    replicas = given.replicas or (2 if given.what == "drains" else 1)
    soak = Soak(given.runs, given.streams, given.engine, replicas)
    found = asyncio.run((supervisor if given.what == "supervisor" else drains)(soak))
    asked = {"what": given.what, "engine": soak.engine, "replicas": replicas, "runs": soak.runs}
    sys.stdout.write(json.dumps({**asked, **found}) + "\n")


if __name__ == "__main__":
    main()
