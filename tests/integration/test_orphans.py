"""Whatever is killed, at whatever moment: soon nothing of ours lives but what is looked after."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from orchestrator.runtimes.shim.kernel import lives
from orchestrator.runtimes.shim.leaf import Leaf
from orchestrator.runtimes.shim.tree import Tree
from tests.harness import Room, until

KILLS = int(os.environ.get("ORPHAN_KILLS", "20"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 10 * KILLS)]
SEED = int(os.environ.get("ORPHAN_SEED", "7"))
BOUND_S = 15.0
LOAD_S = 0.4
TARGETS = ("supervisor", "shim", "leader", "part", "gateway", "gateway's shim", "shim and leader")
NAMES = ("demo-0", "gateway-0")


def told(room: Room, name: str) -> dict[str, Any]:
    """What lies in the folder of an instance's latest generation."""
    folders = (room.data / "instances" / name).iterdir()
    folder = max(folders, key=lambda path: int(path.name))
    pids: dict[str, Any] = json.loads((folder / "pid.json").read_text())
    return {**pids, "leaf": json.loads((folder / "leaf.json").read_text())["leaf"]}


def victims(room: Room, target: str) -> list[int]:
    """The pids to kill for a word of TARGETS; none where there is no such process now."""
    assert room.process is not None
    if target == "supervisor":
        return [room.process.pid]
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        here = told(room, "gateway-0" if "gateway" in target else "demo-0")
        shim, child = here["shim"]["pid"], here["child"]["pid"]
        if target == "part":
            below = psutil.Process(child).children()
            return [each.pid for each in below if each.cmdline()[0].startswith("FAKE::")]
        if target == "shim and leader":
            return [shim, child]
        return [shim] if target.endswith("shim") else [child]
    return []


def settled(room: Room) -> bool:
    """Whether engine and gateway are in service, and nothing else of ours lives or lies about."""
    assert room.process is not None
    parents, allowed = {room.process.pid}, {room.process.pid}
    try:
        for name in NAMES:
            row, here = room.engine(name), told(room, name)
            if row["state"] != "ready" or row["pid"] != here["child"]["pid"]:
                return False
            if not (lives(here["child"]) and lives(here["shim"])):
                return False
            tree = Tree(here["child"], Leaf(here["leaf"]), "", (here["shim"]["pid"],))
            parents.add(here["shim"]["pid"])
            allowed |= {here["shim"]["pid"], *tree.members()}
        if any(each.pid not in allowed for each in room.processes()):
            return False
        return not [
            each.pid
            for each in psutil.process_iter()
            if each.status() == psutil.STATUS_ZOMBIE and each.ppid() in parents
        ]
    except (OSError, KeyError, ValueError, httpx.HTTPError, psutil.NoSuchProcess):
        return False  # it is just being replaced


def state_of(room: Room) -> str:
    """For the message of a failure."""
    lines = [f"{each.pid} {' '.join(each.cmdline())[:90]}" for each in room.processes()]
    return "\n".join([*lines, room.log.read_text()[-2000:]])


def strike(room: Room, luck: random.Random, target: str, phase: str) -> None:
    """Bring the server into a phase and kill."""
    if phase == "load":
        room.admin("POST", "/admin/models/demo/stop", json={"drain_s": 0})
        room.wait_state("stopped")
        room.admin("POST", "/admin/models/demo/start")
        threading.Event().wait(luck.uniform(0, 1.5 * LOAD_S))
    for pid in victims(room, target):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if target == "supervisor":
        room.wait_end()
        threading.Event().wait(luck.choice((0, 0, 1)))
        room.start()


def test_nothing_is_left_behind_whatever_is_killed(make_room: Callable[..., Room]) -> None:
    luck = random.Random(SEED)
    room = make_room(
        *("--vital-child", "FAKE::Worker_1", "--fork-grandchild", "--load-s", str(LOAD_S)),
        stop_grace_s=1, restart_limit=1000, backoff_max_s=0, lease_s=10,
    ).start()  # fmt: skip
    done: Counter[str] = Counter()
    took: list[float] = []
    for number in range(KILLS):
        target, phase = luck.choice(TARGETS), luck.choice(("ready", "load", "load", "at once"))
        began = time.monotonic()
        strike(room, luck, target, phase)
        done[f"{target}, {phase}"] += 1
        struck = time.monotonic()
        if phase == "at once" and number < KILLS - 1:
            continue  # and the next blow falls on whatever is there now
        try:
            until(lambda: settled(room), BOUND_S, f"kill {number}: {target} in phase {phase}")
        except AssertionError as error:
            raise AssertionError(
                f"{error} after {struck - began:.1f} s\n{state_of(room)}"
            ) from None
        took.append(time.monotonic() - struck)
    assert room.generate("x", max_new_tokens=1).status_code == 200
    generations = {name: int(room.engine(name)["generation"]) for name in NAMES}
    assert room.stop() == 0
    until(lambda: not room.processes(), 5, "nothing runs after the end")
    assert left_groups(room.data, generations) == []
    worst, median = max(took), sorted(took)[len(took) // 2]
    print(f"{KILLS} kills, seed {SEED}: 0 orphans, 0 zombies, 0 control groups left; settled after")
    print(f"{median:.1f} s (median), {worst:.1f} s (worst); {dict(done)}; {generations}")


def left_groups(data: Path, generations: dict[str, int]) -> list[str]:
    """Control groups that any generation of these instances left."""
    marks = {
        hashlib.sha256(str(data / "instances" / name / str(number)).encode()).hexdigest()[:8]
        for name, last in generations.items()
        for number in range(1, last + 1)
    }
    groups = Path("/sys/fs/cgroup").rglob("engineroom.*")
    return [str(each) for each in groups if each.name.split(".")[-2] in marks]
