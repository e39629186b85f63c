"""What the doctor looks at, as values. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Literal

from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value


class Device(Value):
    """A device file of an accelerator, and whether this user may open it."""

    path: str
    usable: bool


class Memory(Value):
    """RAM after control groups, as in the profile; swap; the limit itself; /dev/shm, None: none."""

    total: int
    available: int
    swap_total: int
    swap_used: int
    limit: int | None = None
    shm: int | None = None


class PortUse(Value):
    """One of our two ports; `trouble` says why we cannot listen, None where we can.

    `holder` is who listens there, as far as this user may see, `ours` that it belongs to us.
    """

    name: Literal["port", "admin_port"]
    address: str
    trouble: str | None = None
    holder: str = ""
    ours: bool = False


class Place(Value):
    """A file or folder of ours. `mode` is None where there is none yet."""

    what: str
    path: str
    mode: int | None
    mine: bool = True
    writable: bool = True
    private: bool = False


class Disk(Value):
    """Room on the disk of a folder; `least` is what its purpose needs."""

    what: str
    path: str
    free: int
    least: int


class Running(Value):
    """A process that was started for this data directory and lives; `watched`: so does its shim."""

    name: str
    pid: int
    watched: bool


class ServerState(Value):
    """The supervisor of the data directory.

    `pid` is set while one holds the lock, `admin` where it said it listens, `trouble` why it could
    not be asked, `degraded` that it keeps its state in memory only.
    """

    pid: int | None = None
    admin: str = ""
    trouble: str = ""
    degraded: bool = False


class Facts(Value):
    """Everything that was seen. `compiled` counts modules of the gateway, `stale` are those of them
    whose source is another now."""

    hardware: HardwareProfile
    nvidia: bool
    devices: tuple[Device, ...]
    memory: Memory
    ports: tuple[PortUse, ...]
    places: tuple[Place, ...]
    disks: tuple[Disk, ...]
    server: ServerState
    running: tuple[Running, ...]
    sockets: str = ""
    broken: tuple[str, ...] = ()
    state: str = ""
    lease_s: float
    compiled: int = 0
    stale: tuple[str, ...] = ()
