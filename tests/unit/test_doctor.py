"""The doctor: what was seen, and what that means."""

from __future__ import annotations

from typing import Any

import pytest

from engine_launchers.machine import Gpu, HardwareProfile
from orchestrator.doctor.facts import (
    Device,
    Disk,
    Facts,
    Memory,
    Place,
    PortUse,
    Running,
    ServerState,
)
from orchestrator.doctor.judging import judge

GIB = 2**30
MACHINE = HardwareProfile(
    ram_total=16 * GIB, ram_available=8 * GIB, cpu_cores=4, platform="linux-x86_64"
)
CARD = Gpu(
    index=0, uuid="GPU-1", name="A", vendor="nvidia", vram_total=8 * GIB, vram_free=GIB, driver="1"
)
PLENTY = Memory(total=16 * GIB, available=8 * GIB, swap_total=0, swap_used=0, shm=8 * GIB)
WELL = Facts(
    hardware=MACHINE,
    nvidia=False,
    devices=(),
    memory=PLENTY,
    ports=(),
    places=(),
    disks=(),
    server=ServerState(),
    running=(),
    lease_s=120,
)
BLIND = MACHINE.model_copy(update={"notes": ("NVIDIA driver does not answer",)})
PAIR = MACHINE.model_copy(
    update={"gpus": (CARD, CARD.model_copy(update={"index": 1, "uuid": "GPU-2"}))}
)
UP = ServerState(pid=7, admin="http://127.0.0.1:8002")


def memory(**changes: Any) -> dict[str, Any]:
    return {"memory": PLENTY.model_copy(update=changes)}


@pytest.mark.parametrize(
    ("changes", "level", "about", "remedy"),
    [
        ({}, "ok", "gateway", ""),
        ({"compiled": 35}, "ok", "gateway", ""),
        ({"compiled": 35, "stale": ("a.py",)}, "wrong", "gateway", "make compiled"),
        ({"hardware": BLIND, "nvidia": True}, "wrong", "driver", "nvidia-smi"),
        ({"hardware": BLIND}, "note", "hardware", ""),
        ({"nvidia": True}, "note", "driver", ""),
        ({"hardware": PAIR}, "ok", "gpu 1", ""),
        ({"devices": (Device(path="/dev/kfd", usable=False),)}, "wrong", "/dev/kfd", "group"),
        (memory(available=GIB // 2), "wrong", "memory", "engineroom plan"),
        (memory(limit=4 * GIB), "note", "control group", "raise"),
        (memory(swap_total=8 * GIB, swap_used=3 * GIB), "wrong", "swap", "end what holds"),
        (memory(swap_total=8 * GIB, swap_used=GIB), "ok", "swap", ""),
        (memory(shm=64 << 20), "note", "shared memory", "--shm-size"),
        ({**memory(shm=64 << 20), "hardware": PAIR}, "wrong", "shared memory", "--shm-size"),
        (memory(shm=None), "note", "shared memory", "tmpfs"),
        ({"disks": (Disk(what="disk", path="/", free=1, least=GIB),)}, "wrong", "disk", "free"),
        (
            {"places": (Place(what="admin token", path="/t", mode=0o644, private=True),)},
            "wrong",
            "admin token",
            "chmod 600 /t",
        ),
        (
            {"places": (Place(what="data folder", path="/d", mode=0o755, private=True),)},
            "wrong",
            "data folder",
            "chmod 700 /d",
        ),
        (
            {"places": (Place(what="data folder", path="/d", mode=0o700, mine=False),)},
            "wrong",
            "data folder",
            "chown -R",
        ),
        (
            {"places": (Place(what="state file", path="/s", mode=0o400, writable=False),)},
            "wrong",
            "state file",
            "writable",
        ),
        ({"places": (Place(what="state file", path="/s", mode=None),)}, "ok", "state file", ""),
        ({"server": UP}, "ok", "server", ""),
        ({"server": UP.model_copy(update={"trouble": "no"})}, "wrong", "server", "kill 7"),
        ({"server": ServerState(admin="http://x")}, "note", "server", "adopts"),
        ({"server": UP.model_copy(update={"degraded": True})}, "wrong", "state", "free the disk"),
        ({"state": "malformed"}, "note", "state", "next start"),
        ({"broken": ("/d/state.broken-1",)}, "note", "state", "delete"),
        ({"sockets": "/run/x"}, "note", "sockets", "rm -r /run/x"),
        (
            {"running": (Running(name="demo-0", pid=9, watched=True),)},
            "wrong",
            "demo-0 (pid 9)",
            "engineroom serve",
        ),
        (
            {"server": UP, "running": (Running(name="demo-0", pid=9, watched=False),)},
            "wrong",
            "demo-0 (pid 9)",
            "kill -9 -9",
        ),
        (
            {"ports": (PortUse(name="port", address="h:1", trouble="taken", holder="nginx"),)},
            "wrong",
            "port",
            "another port",
        ),
        (
            {"ports": (PortUse(name="port", address="h:1", trouble="taken", ours=True),)},
            "ok",
            "port",
            "",
        ),
    ],
)
def test_each_fact_is_judged_and_each_wrong_has_a_remedy(
    changes: dict[str, Any], level: str, about: str, remedy: str
) -> None:
    found = judge(WELL.model_copy(update=changes))
    mine = [each for each in found if each.about == about and each.level == level]
    assert mine, found
    assert any(remedy in each.remedy for each in mine)
    assert all(each.remedy for each in found if each.level == "wrong")
    assert [each.level for each in found].count("wrong") == (level == "wrong")


def test_a_machine_without_trouble_has_none() -> None:
    assert {each.level for each in judge(WELL)} == {"ok", "note"}
