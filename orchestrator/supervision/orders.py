"""What a supervisor shall keep running, as its start-up or a reload decided."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine_launchers.base import EngineName, EnginePlan, Launcher
from engine_launchers.machine import HardwareProfile
from orchestrator.control import Routing
from orchestrator.supervision.ledger import Room
from orchestrator.supervision.lifecycle import Policy
from orchestrator.supervision.probing import ProbeTimes
from orchestrator.supervision.schedule import Keeping


@dataclass(frozen=True)
class ModelOrder:
    """One model: its plan, the program that runs it, and how it is kept.

    `fingerprint` names the wish behind the plan: while it stays the same, engines are left alone.
    `max_concurrency` is the most requests per engine that an operator allows. `host` is the address
    that its engines listen on.
    """

    plan: EnginePlan
    fingerprint: str
    program: str
    keeping: Keeping = field(default_factory=Keeping)
    preload: bool = True
    replicas: int = 1
    max_concurrency: int | None = None
    routing: Routing = "auto"
    defaults: Mapping[str, int | float] = field(default_factory=dict)
    host: str = "127.0.0.1"

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.plan.model.id


@dataclass(frozen=True)
class Reloaded:
    """What a reload wants now. `fixed` names settings that changed and need a new start."""

    models: tuple[ModelOrder, ...]
    fixed: tuple[str, ...] = ()


class ReadRooms(Protocol):
    """Reads what every device has free now."""

    async def __call__(self, explain: bool = False) -> Mapping[str, Room]:
        """Device to its room; `explain`: read anew, and who else holds memory."""


NextEngine = Callable[[ModelOrder, frozenset[EngineName]], Awaitable[ModelOrder]]
"""The order on another engine than those named; raises EngineRoomError where there is none."""


@dataclass(frozen=True)
class Orders:
    """Everything that start-up decided. Times in seconds, `budget` in bytes by device.

    `memory_wait_s` is how long a launch waits for memory that is coming back.
    """

    models: tuple[ModelOrder, ...]
    hardware: HardwareProfile
    launchers: Mapping[EngineName, Launcher]
    policy: Policy
    probes: ProbeTimes
    drain_s: float
    control_socket: Path
    rooms: ReadRooms
    next_engine: NextEngine
    reload: Callable[[], Awaitable[Reloaded]]
    what_if: Callable[[Mapping[str, Any]], Awaitable[EnginePlan]]
    memory_wait_s: float = 30.0
    budget: Mapping[str, int] = field(default_factory=dict)
