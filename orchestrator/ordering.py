"""From decisions to a supervisor's orders, at the start and again whenever it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine_launchers.base import EngineName, EnginePlan
from orchestrator.engines.choosing import Requirement
from orchestrator.errors import ConfigError, EngineMissing
from orchestrator.model_settings import ModelSettings
from orchestrator.rooms import Rooms
from orchestrator.settings import Settings, sentence
from orchestrator.startup import Decision, Planning
from orchestrator.supervision.lifecycle import Policy
from orchestrator.supervision.orders import ModelOrder, Orders, Reloaded
from orchestrator.supervision.probing import ProbeTimes
from orchestrator.supervision.schedule import Keeping

Install = Callable[[Requirement], Awaitable[str | None]]
"""Installs an engine; its program, or None if the end came first."""


async def program_of(decision: Decision, install: Install) -> str | None:
    """The plan's engine as a program, installed where it is missing; None if the end came first."""
    need = decision.engine
    if isinstance(need, Requirement):
        return await install(need)
    return need.program if need else ""


def model_order(decision: Decision, program: str) -> ModelOrder:
    """One model's order; the only one of the settings is loaded at the start."""
    settings = decision.settings
    return ModelOrder(
        plan=decision.plan,
        fingerprint=decision.fingerprint,
        program=program,
        keeping=Keeping(
            pin=settings.pin,
            priority=settings.priority,
            ttl_s=settings.ttl_s,
            group=settings.group,
            exclusive=settings.exclusive,
            sleep_level=settings.sleep_level,
        ),
        preload=not settings.listed if settings.preload is None else settings.preload,
        replicas=settings.replicas or 1,
        max_concurrency=settings.max_concurrency,
        routing=settings.routing,
        defaults=settings.defaults.model_dump(exclude_none=True) if settings.defaults else {},
    )


class Orderer:
    """Keeps what the orders were made of, to make them anew."""

    def __init__(self, planning: Planning, settings: Settings, install: Install) -> None:
        self._planning, self._settings, self._install = planning, settings, install
        self._models: dict[str, Settings] = {}

    async def models(self, decisions: tuple[Decision, ...]) -> tuple[ModelOrder, ...] | None:
        """An order for each decision; None if the end came before an engine was installed."""
        made: list[ModelOrder] = []
        for decision in decisions:
            program = await program_of(decision, self._install)
            if program is None:
                return None
            made.append(model_order(decision, program))
        self._models = {each.plan.model.id: each.settings for each in decisions}
        return tuple(made)

    def orders(
        self, decisions: tuple[Decision, ...], models: tuple[ModelOrder, ...], run: Path
    ) -> Orders:
        """Everything that the supervisor is started with; `run` holds its sockets."""
        settings = self._settings
        budget = {} if settings.max_ram_bytes is None else {"ram": settings.max_ram_bytes}
        return Orders(
            models=models,
            hardware=decisions[0].hardware,
            launchers=self._planning.launchers,
            policy=Policy(
                restart_limit=settings.restart_limit,
                restart_window_s=settings.restart_window_s,
                backoff_max_s=settings.backoff_max_s,
                stable_s=settings.stable_s,
                stop_grace_s=settings.stop_grace_s,
                request_limit=settings.request_limit,
                half_open_s=settings.half_open_s,
            ),
            probes=ProbeTimes(
                settings.probe_interval_s,
                settings.probe_timeout_s,
                settings.start_stall_s,
                settings.hang_timeout_s,
            ),
            drain_s=settings.drain_s,
            control_socket=settings.control or run / "control.sock",
            rooms=Rooms(),
            next_engine=self.instead,
            reload=self.reload,
            what_if=self.what_if,
            memory_wait_s=settings.memory_wait_s,
            budget=budget,
        )

    async def instead(self, order: ModelOrder, tried: frozenset[EngineName]) -> ModelOrder:
        """The same model on another engine that is installed. Raises EngineRoomError."""
        settings = self._models[order.name]
        decision = await asyncio.to_thread(self._planning.instead, settings, tried)
        program = await program_of(decision, self._install)
        if program is None:
            raise EngineMissing("the server is being stopped")
        return model_order(decision, program)

    async def reload(self) -> Reloaded:
        """The orders of the settings as they are now. Raises EngineRoomError, changing nothing."""
        fresh = await asyncio.to_thread(self._planning.read)
        decisions = await asyncio.to_thread(self._planning.decide, fresh)
        models = await self.models(decisions)
        if models is None:
            raise EngineMissing("the server is being stopped")
        return Reloaded(models, _fixed(self._settings, fresh))

    async def what_if(self, wish: Mapping[str, Any]) -> EnginePlan:
        """What would run with these keys of a model; nothing is started. Raises ConfigError."""
        try:
            asked = ModelSettings.model_validate(dict(wish))
        except ValidationError as error:
            raise ConfigError(sentence(error, lambda field: field)) from None
        own = {key: getattr(asked, key) for key in asked.model_fields_set}
        settings = self._settings.model_copy(update={**own, "models": ()})
        return (await asyncio.to_thread(self._planning.decide, settings))[0].plan


def _fixed(old: Settings, new: Settings) -> tuple[str, ...]:
    """Names of changed settings that belong to the server, not to a model."""
    live = {*ModelSettings.model_fields, "models"}
    names = [name for name in Settings.model_fields if name not in live]
    return tuple(name for name in names if getattr(old, name) != getattr(new, name))
