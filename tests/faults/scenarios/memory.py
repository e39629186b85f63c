"""The kernel kills an engine for memory."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.faults.lab import Lab, scenario
from tests.faults.scenarios.shims import folder_of
from tests.harness import Late, Room, until
from tests.streams import events_of


@scenario("F13", "fake")
def killed_for_memory(lab: Lab) -> None:
    """The kernel kills within the engine's control group, which has to count memory here."""
    knobs = ("--memory-max", str(192 << 20), "--eat-after-tokens", "3", "--tps", "50")
    room = lab.make(*knobs).start()
    with room.stream("Hi", max_new_tokens=20) as events:
        rest = [json.loads(next(events)) for _ in range(3)]
        began = time.monotonic()
        rest += [json.loads(each) for each in events]
    lab.took(time.monotonic() - began)
    assert rest[-1]["error"]["code"] == "engine_died"
    until(lambda: room.metric("engineroom_engine_restarts_total", cause="host_oom"), 10, "host_oom")
    room.wait_state("ready")
    assert room.admin("GET", "/admin/models/demo/plan").json()["rung"] == 1


def squeeze(folder: Path) -> None:
    """Limit a control group to what its processes hold now, the page cache left out."""
    limit, usage = folder / "memory.max", folder / "memory.current"
    if not limit.exists():
        limit, usage = folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes"
        with suppress(OSError):  # refused after everything that can be dropped is dropped
            limit.write_text("4096")
    with suppress(OSError):
        (folder / "memory.reclaim").write_text("1G")

    def held() -> bool:
        try:
            limit.write_text(str(int(usage.read_text()) + (1 << 16)))
        except OSError:
            return False
        return True

    until(held, 10, "a limit")


@contextmanager
def filling(url: str) -> Iterator[None]:
    """Bodies that the engine has to hold, one after another."""
    body = json.dumps({"content": "once " * (6 << 20), "prompt": "x" * (1 << 20)})
    enough = threading.Event()

    def fill() -> None:
        while not enough.wait(0.02):
            with suppress(httpx.HTTPError):
                httpx.post(f"{url}/tokenize", content=body, timeout=30, trust_env=False)

    threads = [threading.Thread(target=fill, daemon=True) for _ in range(4)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        enough.set()
        for each in threads:
            each.join(60)


def first_end(pids: list[int]) -> Future[float]:
    """The clock at which the first of some processes has ended."""
    told: Future[float] = Future()

    def watch() -> None:
        with ExitStack() as stack:
            ends = select.poll()
            for pid in pids:
                ends.register(fd := os.pidfd_open(pid), select.POLLIN)
                stack.callback(os.close, fd)
            ends.poll()
            told.set_result(time.monotonic())

    threading.Thread(target=watch, daemon=True).start()
    return told


def squeezed(lab: Lab, room: Room) -> None:
    """The limit is set around what the engine holds: its next requests are too many.

    Answers that are over before it is killed are followed by another.
    """
    row, leader = room.engine(), psutil.Process(room.engine()["pid"])
    leaf = json.loads((folder_of(room) / "leaf.json").read_text())["leaf"]
    (counted,) = [Path(each) for each in leaf if (Path(each) / "memory.stat").exists()]
    killed = first_end([leader.pid, *(each.pid for each in leader.children(recursive=True))])
    asked: dict[str, Any] = {"prompt": "Once", "max_new_tokens": 1500}
    with ExitStack() as stack:
        with room.stream(**asked) as events:
            rest = [next(events)]
            squeeze(counted)
            stack.enter_context(filling(row["url"]))
            rest += events
        while rest[-1] == "[DONE]":
            if room.engine()["generation"] > row["generation"]:
                raise Late("it was killed between two answers")
            _, rest = events_of(room.http, f"{room.url}/generate_stream", asked)
        over = time.monotonic()
    assert "error" in json.loads(rest[-1])
    lab.took(over - killed.result(10), "F13")
    until(lambda: room.engine()["generation"] > row["generation"], 20, "another launch")
    now = room.engine()
    assert room.metric("engineroom_engine_restarts_total", cause="host_oom") == 1, now
    room.wait_state("ready", seconds=400)
