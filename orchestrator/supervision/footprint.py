"""What a running engine takes of the machine's memory, as the kernel and the drivers count it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import psutil

from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.ledger import Room, planned
from orchestrator.supervision.workloads import EngineWorkload


def taken(instance: Instance, rooms: Mapping[str, Room]) -> dict[str, int]:
    """Bytes by device that the engine's processes hold; pages they share are counted in each.

    Where a driver does not tell whose a GPU's memory is, an engine that serves holds its plan.
    """
    handle = instance.running
    child = handle.record.child if handle else None
    if child is None:
        return {}
    resident, pids = 0, set[int]()
    with contextlib.suppress(psutil.Error):  # it ended while we looked
        leader = psutil.Process(child.pid)
        for process in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                resident += process.memory_info().rss
                pids.add(process.pid)
    found = {"ram": resident} if resident else {}
    workload = instance.workload
    plan = planned(workload.plan.estimate) if isinstance(workload, EngineWorkload) else {}
    for device, size in plan.items():
        if device not in rooms or device == "ram":
            continue
        held = sum(holder.held for holder in rooms[device].holders if holder.pid in pids)
        serves = instance.lifecycle.state in lc.SERVING
        found[device] = held or (size if serves else 0)
    return found
