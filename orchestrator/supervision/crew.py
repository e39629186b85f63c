"""All instances by name, each with the task that owns it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from orchestrator.supervision.instance import Instance

_log = logging.getLogger("engineroom.supervisor")


class Crew:
    """Starts an owner for every instance that joins, and ends it when the instance leaves."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._owners: dict[str, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Instance]:
        return iter(tuple(self._instances.values()))

    def get(self, name: str) -> Instance | None:
        """The instance of that name."""
        return self._instances.get(name)

    def besides(self, some: tuple[Instance, ...]) -> list[Instance]:
        """All but these."""
        return [each for each in self if each not in some]

    def add(self, instance: Instance) -> None:
        """Take an instance in; from now on it handles its events."""
        if instance.name in self._instances:
            raise ValueError(f"{instance.name} is there already")
        self._instances[instance.name] = instance
        owner = asyncio.create_task(instance.run(), name=f"owner {instance.name}")
        owner.add_done_callback(_report_death)
        self._owners[instance.name] = owner

    async def remove(self, name: str) -> None:
        """Let go of an instance that is at rest."""
        self._instances.pop(name, None)
        if (owner := self._owners.pop(name, None)) is not None:
            owner.cancel()
            await asyncio.gather(owner, return_exceptions=True)

    async def close(self) -> None:
        """Let go of all; what still runs goes on without us."""
        for name in tuple(self._instances):
            await self.remove(name)


def _report_death(owner: asyncio.Task[None]) -> None:
    if not owner.cancelled() and (error := owner.exception()) is not None:
        _log.critical("%s died; restart engineroom", owner.get_name(), exc_info=error)
