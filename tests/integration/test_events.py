"""Events as people and programs follow them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.admin_events import END, add_events, follow
from orchestrator.cli.events import events
from orchestrator.errors import ControlUnavailable
from orchestrator.supervision.store import Store
from tests.harness import ROOT, SLACK, Room, clean_env


async def frames(lines: AsyncIterator[str], count: int) -> list[str]:
    """The next pieces of a stream."""
    return [await anext(lines) for _ in range(count)]


def ids(text: str) -> list[int]:
    return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]


async def test_a_stream_resumes_filters_keeps_alive_and_ends(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    for number in range(250):
        store.add_event("engine.state", f"demo-{number % 2}", number=number)
    whole = follow(store, 0, "demo-1", "engine", 30)
    retry, *batches = await frames(whole, 3)
    assert retry == "retry: 1000\n\n"
    assert ids("".join(batches)) == list(range(2, 251, 2))
    store.add_event("engine.state", "demo-0")
    store.add_event("model.stop", "demo-1")
    store.add_event("engine.state", "demo-1", text="two\nlines")
    frame = await anext(whole)
    assert frame.startswith("id: 253\nevent: engine.state\ndata: {")
    assert json.loads(frame.splitlines()[2][6:])["detail"] == {"text": "two\nlines"}
    quiet = follow(store, 10**17, None, None, 0.01)  # ids of another life: what comes next
    assert (await frames(quiet, 2))[1] == ": nothing new\n\n"
    store.journal.close()
    assert [piece async for piece in whole] == [END]
    assert [piece async for piece in quiet] == [END]
    store.close()


async def test_the_paths_answer(tmp_path: Path) -> None:
    store, app = Store(tmp_path / "state.db"), FastAPI()
    add_events(app, store, [])
    store.add_event("engine.state", "demo-0", why="wanted")
    store.journal.close()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        listed = (await client.get("/admin/events", params={"type": "engine"})).json()["events"]
        assert [(each["id"], each["detail"]) for each in listed] == [(1, {"why": "wanted"})]
        streamed = await client.get("/admin/events/stream", headers={"last-event-id": "0"})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert ids(streamed.text) == [1]
        assert streamed.text.endswith(END)
        assert (await client.delete("/admin/calibration")).json() == {"forgotten": 0}
        assert (await client.get("/admin/calibration")).json() == {"calibration": []}
        assert (await client.get("/admin/plans")).json() == {"plans": []}
        assert store.events(1)[0].type == "calibration.cleared"
    store.close()


def test_the_command_follows_over_a_killed_supervisor(
    make_room: Callable[..., Room], capsys: pytest.CaptureFixture[str]
) -> None:
    room = make_room(drain_s=0).start()
    command = [sys.executable, "-m", "orchestrator", "events", "--follow", "--json"]
    follower = subprocess.Popen(
        [*command, "--limit", "1000", "--data-dir", str(room.data)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=clean_env(),
    )
    guard = threading.Timer(60 * SLACK, follower.kill)
    guard.start()
    try:
        assert follower.stdout is not None
        rows: list[dict[str, Any]] = []

        def read_to(type: str) -> None:
            assert follower.stdout is not None
            while not rows or rows[-1]["type"] != type:
                rows.append(json.loads(follower.stdout.readline()))

        read_to("engine.state")
        room.kill()
        room.start()
        read_to("engine.adopted")
        events(type="plan", subject="demo-0", data_dir=room.data)
        shown = capsys.readouterr().out
        assert "plan.run" in shown
        assert room.stop() == 0
        rows += [json.loads(line) for line in follower.stdout]
        assert follower.wait(20 * SLACK) == 0
        numbers = [row["id"] for row in rows]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert rows[-1]["detail"]["new"] == "stopped"
        events(limit=2, type="engine", data_dir=room.data)  # nobody runs any more
        told = capsys.readouterr()
        assert told.out.splitlines()[-1].split()[5:7] == ["old=stopping", "new=stopped"]
        assert "what the last one left" in told.err
        with pytest.raises(ControlUnavailable, match="engineroom serve"):
            events(follow=True, data_dir=room.data)
    finally:
        guard.cancel()
        follower.kill()
        follower.communicate()
