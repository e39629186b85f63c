"""Who holds which memory: claims of our engines, beside what the machine says is free. Pure.

A claim is planned before an engine starts and measured while it runs. What is planned and not yet
taken is kept free for it, so that two loads never count on the same bytes. Foreign processes show
in what is free. Devices are "ram" and "gpu:INDEX"; all figures are bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from engine_launchers.base import MemoryEstimate
from engine_launchers.machine import GpuPulse

_SLACK_BYTES = 256 << 20  # what a machine gains or loses between a plan and its launch
_SLACK_SHARE = 0.02
Bytes = Mapping[str, int]


@dataclass(frozen=True)
class Holder:
    """A process that is not ours and holds memory of a device."""

    pid: int
    name: str
    held: int


@dataclass(frozen=True)
class Room:
    """One device as it is now. `pulse` is None where there is no GPU."""

    total: int
    free: int
    holders: tuple[Holder, ...] = ()
    pulse: GpuPulse | None = None

    @property
    def slack(self) -> int:
        """How much too little is no reason to refuse: estimates and readings are not that exact."""
        return max(_SLACK_BYTES, int(_SLACK_SHARE * self.total))


@dataclass(frozen=True)
class Claim:
    """What one engine was promised, and what it has taken of it; empty until it was measured."""

    planned: Bytes
    measured: Bytes = field(default_factory=dict)

    @property
    def held(self) -> dict[str, int]:
        """What others may count on when it ends: what it has taken, and what is kept for it."""
        devices = self.planned.keys() | self.measured.keys()
        return {d: max(self.planned.get(d, 0), self.measured.get(d, 0)) for d in devices}

    def owed(self, device: str) -> int:
        """Planned and not taken yet."""
        return max(0, self.planned.get(device, 0) - self.measured.get(device, 0))


def planned(estimate: Iterable[MemoryEstimate], copies: int = 1) -> dict[str, int]:
    """Device to bytes of a plan's estimate."""
    return {each.device: each.total * copies for each in estimate}


class Ledger:
    """One per supervisor. Its owner alone writes; whoever decides reads `spare`.

    `budget` is what all of our engines together may take of a device; others have no limit.
    """

    def __init__(self, budget: Bytes | None = None) -> None:
        self.budget = dict(budget or {})
        self.claims: dict[str, Claim] = {}

    def claim(self, name: str, need: Bytes) -> None:
        """Promise `need` to an engine; what it already holds stays measured."""
        old = self.claims.get(name)
        self.claims[name] = Claim(dict(need), old.measured if old else {})

    def measure(self, name: str, taken: Bytes) -> None:
        """Note what an engine holds now; unknown names are ignored: it ended meanwhile."""
        if (old := self.claims.get(name)) is not None:
            self.claims[name] = Claim(old.planned, dict(taken))

    def ended(self, name: str) -> None:
        """Its process is gone, its promise stays: it will be started again."""
        self.measure(name, {})

    def release(self, name: str) -> None:
        """Give a claim back."""
        self.claims.pop(name, None)

    def spare(self, rooms: Mapping[str, Room], without: Collection[str] = ()) -> dict[str, int]:
        """What a new engine may count on, per device. Claims named in `without` promise nothing."""
        live = [claim for name, claim in self.claims.items() if name not in without]
        spare = {
            device: room.free - sum(claim.owed(device) for claim in live)
            for device, room in rooms.items()
        }
        for device in self.budget.keys() & spare.keys():
            held = sum(claim.held.get(device, 0) for claim in live)
            spare[device] = min(spare[device], self.budget[device] - held)
        return spare

    def shortage(self, name: str, need: Bytes, rooms: Mapping[str, Room]) -> str | None:
        """Why `need` does not fit for engine `name`, with the numbers; None where it does."""
        spare, mine = self.spare(rooms, {name}), self.claims.get(name)
        own = mine.measured if mine else {}  # what sleeps has a part of it already
        for device, size in need.items():
            room = rooms.get(device)
            if room is None:
                return f"{device} is not there any more"
            slack = 0 if device in self.budget else room.slack
            if size > spare[device] + slack + own.get(device, 0):
                return self._told(name, device, size, spare[device], room)
        return None

    def _told(self, name: str, device: str, size: int, spare: int, room: Room) -> str:
        total = min(room.total, self.budget.get(device, room.total))
        said = f"{device}: {gib(size)} needed, {gib(max(0, spare))} of {gib(total)} free"
        ours = {
            other: claim.held.get(device, 0)
            for other, claim in self.claims.items()
            if other != name and claim.held.get(device, 0)
        }
        held = [f"{other} holds {gib(size)}" for other, size in _largest(ours)]
        foreign = {f"process {h.pid} ({h.name})": h.held for h in room.holders}
        held += [f"{other} holds {gib(size)}" for other, size in _largest(foreign)]
        return "; ".join([said, *held])


def _largest(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])[:3]


def gib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
