"""From settings to a decision: the machine, the model, the engines that can be had, the plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine_launchers import ENGINES, load_launcher
from engine_launchers.base import EngineName, EnginePlan, Launcher
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.advice import wish_of, without_gpus
from orchestrator.contradictions import refuse_contradictions
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.images import in_image
from orchestrator.engines.shelf import Engine, Shelf
from orchestrator.errors import (
    ConfigError,
    EngineMissing,
    EngineRoomError,
    ModelInvalid,
    NoEngineFits,
)
from orchestrator.external import plan_of
from orchestrator.hardware import probe
from orchestrator.models.chosen import chosen
from orchestrator.models.resolve import Resolved, renamed
from orchestrator.ours import with_ours
from orchestrator.planning.experience import experienced, key_of
from orchestrator.planning.planner import Wish, fingerprint, make_plan
from orchestrator.resources import demo_dir
from orchestrator.settings import Settings
from orchestrator.supervision.calibration import remembered
from orchestrator.tables import load_gpus, load_tiers

Offer = Callable[[Requirement], bool]
"""Asked whether a missing engine shall be installed."""


@dataclass(frozen=True)
class Decision:
    """What will run, on what, and where its program is.

    `engine` is a Requirement where it has to be installed first, None for a server that runs.
    `second` says why the first choice was not taken, empty where it was. `settings` are those of
    this one model.
    """

    settings: Settings
    hardware: HardwareProfile
    plan: EnginePlan
    fingerprint: str
    launchers: Mapping[EngineName, Launcher]
    engine: Engine | Requirement | None
    second: str = ""


@dataclass(frozen=True)
class _Choice:
    """The engines of this machine: those to choose from, and why not the others."""

    found: Mapping[EngineName, Engine | Requirement]
    absent: Mapping[EngineName, str]

    def ready(self) -> _Choice:
        """Those that are here already; the others are told how to be had."""
        here = {name: each for name, each in self.found.items() if isinstance(each, Engine)}
        rest = {name: _how_to_get(name) for name in self.found if name not in here}
        return _Choice(here, {**self.absent, **rest})


def all_launchers() -> dict[EngineName, Launcher]:
    """Every engine that this version can start."""
    return {name: load_launcher(name) for name in ENGINES}


def with_lessons(plan: EnginePlan, hardware: HardwareProfile, data: Path) -> EnginePlan:
    """The plan with what engines have shown under that data directory; its version is set."""
    return experienced(plan, remembered(data).get(key_of(plan, hardware).name))


def shelf_of(settings: Settings) -> Shelf:
    """The engines of this user; what their builds keep lies in the cache folder."""
    return Shelf(settings.engines, os.environ, cache=settings.cache)


class Planning:
    """Makes the decisions of one server: at its start, at a reload, after a failure.

    `read` reads the settings anew from where they came, among others from `file`.
    """

    def __init__(
        self,
        shelf: Shelf,
        read: Callable[[], Settings],
        launchers: Mapping[EngineName, Launcher] | None = None,
        offer: Offer = lambda need: False,
        file: Path | None = None,
    ) -> None:
        self.shelf, self.read, self._offer, self.file = shelf, read, offer, file
        self.launchers = all_launchers() if launchers is None else dict(launchers)

    def decide(self, settings: Settings) -> tuple[Decision, ...]:
        """One decision per model. Raises what `decide` raises, and ConfigError for twins."""
        made = tuple(
            decide(each, self.shelf, self.launchers, self._offer) for each in settings.each()
        )
        _refuse_twins(made)
        return made

    def next_best(self, settings: Settings, error: EngineMissing) -> tuple[Decision, ...]:
        """The decisions for engines that are here, after an installation failed with `error`.

        Raises `error` itself where none of those can serve.
        """
        try:
            made = tuple(decide(each, self.shelf, self.launchers) for each in settings.each())
        except EngineRoomError:
            raise error from None
        _refuse_twins(made)
        return made

    def instead(self, settings: Settings, tried: frozenset[EngineName]) -> Decision:
        """One model on an installed engine that was not tried. Raises as `decide` does."""
        rest = {name: each for name, each in self.launchers.items() if name not in tried}
        if settings.force_backend or not rest:
            raise EngineMissing("no other engine may serve this model")
        return decide(settings, self.shelf, rest)


def _refuse_twins(made: tuple[Decision, ...]) -> None:
    """A name that clients give stands for one thing, and none is the gateway's."""
    if any(each.plan.model.id == "gateway" for each in made):
        raise ConfigError("models: the name gateway is taken: give that model another `name`")
    owner: dict[str, str] = {}
    for each in made:
        for served in each.launchers[each.plan.engine].served(each.plan):
            if served.name in owner:
                raise ConfigError(
                    f"models: {served.name} would stand for {owner[served.name]} and for "
                    f"{each.settings.model}: give one of them another `name`"
                )
            owner[served.name] = each.settings.model


def decide(
    settings: Settings,
    shelf: Shelf,
    launchers: Mapping[EngineName, Launcher] | None = None,
    offer: Offer = lambda need: False,
) -> Decision:
    """Probe, read the model, look for engines, plan.

    The plan is the best of all engines that are here or could be installed. Where its engine is
    missing and `offer` says no, it is the best of those that are here, and says so. Raises
    ConfigError, ModelInvalid, EngineMissing or NoEngineFits.
    """
    able = all_launchers() if launchers is None else dict(launchers)
    refuse_contradictions(settings)
    if settings.engine_url and settings.force_backend:
        return _external(settings, settings.engine_url, able[settings.force_backend], able)
    resolved = chosen(
        settings.model, demo_dir(), None, settings.adapter_path, settings.adapters, settings.aliases
    )
    if settings.name:
        resolved = renamed(resolved, settings.name)
    hardware = with_ours(machine(settings), settings.data / "instances")
    if settings.force_cpu:
        hardware = without_gpus(hardware, "force_cpu")
    wish = wish_of(settings)
    choice = _engines(settings, shelf, able, hardware)
    plan = _planned(_servable(resolved, wish, hardware, able), hardware, able, wish, choice)
    engine, second = choice.found[plan.engine], ""
    if isinstance(engine, Requirement) and not offer(engine):
        second = f"{plan.id} would be the first choice: {_how_to_get(plan.engine)}"
        plan = _without(second, resolved, hardware, able, wish, choice.ready())
        engine = choice.found[plan.engine]
    plan = plan.model_copy(update={"aliases": settings.aliases, "engine_version": engine.version})
    if settings.runtime == "docker" and isinstance(engine, Engine):
        plan = plan.model_copy(update={"runtime": "docker", "image": engine.image})
    if settings.sleep_level and able[plan.engine].watch.sleep:
        tuning = plan.tuning.model_copy(update={"sleep": True})
        plan = plan.model_copy(update={"tuning": tuning})
    plan = with_lessons(plan, hardware, settings.data)
    files = (plan.model.source, *(each.path for each in plan.model.adapters))
    name = fingerprint(wish, plan, max(_changed(Path(each)) for each in files))
    return Decision(settings, hardware, plan, name, able, engine, second)


def _external(
    settings: Settings, url: str, launcher: Launcher, able: Mapping[EngineName, Launcher]
) -> Decision:
    model = settings.model if "model" in settings.model_fields_set else None
    plan = plan_of(url, launcher.name, launcher, model, settings.users)
    names: dict[str, object] = {"aliases": settings.aliases}
    if settings.name:
        names["model"] = plan.model.model_copy(update={"id": settings.name})
    plan = plan.model_copy(update=names)
    name = fingerprint(wish_of(settings), plan, 0)
    return Decision(settings, machine(settings), plan, name, able, None)


def machine(settings: Settings) -> HardwareProfile:
    """This machine, with its memory bandwidth: measured once a boot, kept in the cache folder.

    Of its RAM there is as much as `max_ram_bytes` allows.
    """
    found = probe(bandwidth_cache=settings.cache)
    most = settings.max_ram_bytes
    if most is None:
        return found
    free = min(most, found.ram_available)
    return found.model_copy(update={"ram_total": min(most, found.ram_total), "ram_available": free})


def _engines(
    settings: Settings,
    shelf: Shelf,
    able: Mapping[EngineName, Launcher],
    hardware: HardwareProfile,
) -> _Choice:
    found: dict[EngineName, Engine | Requirement] = {}
    absent: dict[EngineName, str] = {}
    for name in able:
        mine = name == settings.force_backend
        if settings.force_backend and not mine:
            continue
        try:
            found[name] = engine_of(settings, shelf, name, hardware)
        except EngineMissing as error:
            if mine:
                raise
            absent[name] = error.message
    return _Choice(found, absent)


def engine_of(
    settings: Settings, shelf: Shelf, name: EngineName, hardware: HardwareProfile
) -> Engine | Requirement:
    """The engine where the settings want it to run: in an image, or on this machine. Raises
    EngineMissing."""
    mine = name == settings.force_backend
    version = settings.engine_version if mine else None
    path = settings.engine_path if mine else None
    if settings.runtime == "docker":
        image = settings.engine_image if mine else None
        return in_image(shelf.table, name, hardware, version=version, path=path, image=image)
    return shelf.find(name, hardware, version=version, path=path)


def _planned(
    models: tuple[ModelSpec, ...],
    hardware: HardwareProfile,
    able: Mapping[EngineName, Launcher],
    wish: Wish,
    choice: _Choice,
) -> EnginePlan:
    launchers = {name: able[name] for name in choice.found}
    blind = frozenset(n for n, each in choice.found.items() if each.flavour == "cpu")
    tiers, table = load_tiers(), load_gpus()
    plan = make_plan(models, hardware, tiers, launchers, wish, table, choice.absent, blind)
    notes = []
    if hardware.gpus and plan.engine in blind:
        found = choice.found[plan.engine]
        why = found.note if isinstance(found, Requirement) else ""
        notes.append(f"{plan.engine}: {why or 'built for the processor here, GPUs are not used'}")
    if (copies := plan.tuning.replicas or 1) > 1:
        notes.append(f"the machine holds {copies} replicas: set `replicas` to start them")
    if wish.compile and plan.engine != "pytorch":
        notes.append(f"ENABLE_COMPILE: {plan.engine} compiles by itself, or not at all")
    return plan.model_copy(update={"reasons": (*plan.reasons, *notes)})


def _without(
    why: str,
    resolved: Resolved,
    hardware: HardwareProfile,
    able: Mapping[EngineName, Launcher],
    wish: Wish,
    choice: _Choice,
) -> EnginePlan:
    """The best plan of the engines that are here; `why` tells what was wanted instead."""
    try:
        plan = _planned(_servable(resolved, wish, hardware, able), hardware, able, wish, choice)
    except NoEngineFits as error:
        reason = "" if not choice.found else f" (of those installed, {error.message})"
        raise EngineMissing(f"{why}{reason}") from error
    return plan.model_copy(update={"reasons": (*plan.reasons, why)})


def _how_to_get(name: EngineName) -> str:
    return f"{name} is not installed: run `engineroom engines install {name}`, or add --yes"


def _servable(
    resolved: Resolved,
    wish: Wish,
    hardware: HardwareProfile,
    able: Mapping[EngineName, Launcher],
) -> tuple[ModelSpec, ...]:
    """The artefacts that lie on this machine; raises ModelInvalid saying which to fetch."""
    here = tuple(each for each in resolved.variants if not each.source.startswith("hf://"))
    if here or not resolved.variants:
        return here
    plan = make_plan(resolved.variants, hardware, load_tiers(), able, wish, load_gpus())
    address = plan.model.source.removeprefix("hf://")
    raise ModelInvalid(
        f"{resolved.name}: not on this machine yet: run `engineroom pull {address}` first "
        f"({plan.id} would run it)"
    )


def _changed(source: Path) -> int:
    """When a model's files were last written, nanoseconds since the epoch."""
    files = [source, *source.iterdir()] if source.is_dir() else [source]
    return max(each.stat().st_mtime_ns for each in files)
