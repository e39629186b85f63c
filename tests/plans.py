"""Plans in one line: the real Advisor over imagined or hand-made machines, tables read once."""

from __future__ import annotations

from functools import cache
from typing import Any

from engine_launchers import ENGINES, load_launcher
from engine_launchers.base import EngineName, EnginePlan, Launcher
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.advice import Advisor, wish_of
from orchestrator.models.catalog import Catalog
from orchestrator.models.resolve import load_catalog
from orchestrator.planning.gpus import GpuTable
from orchestrator.planning.hypothetical import machine as imagine
from orchestrator.planning.planner import make_plan
from orchestrator.planning.tiers import Tier
from orchestrator.settings import load_settings
from orchestrator.tables import load_gpus, load_tiers

GIB = 2**30
MISTRAL = "mistral-7b-instruct-v0.3"


@cache
def table() -> GpuTable:
    """The accelerators that ship."""
    return load_gpus()


@cache
def catalog() -> Catalog:
    """The models that ship."""
    return load_catalog()


@cache
def tiers() -> tuple[Tier, ...]:
    """The tiers that ship."""
    return load_tiers()


@cache
def launchers() -> dict[EngineName, Launcher]:
    """Every engine."""
    return {name: load_launcher(name) for name in ENGINES}


@cache
def variants(name: str) -> tuple[ModelSpec, ...]:
    """The artefacts of a model of the catalog."""
    return tuple(catalog().variants(name))


def artefact(name: str, quantization: str) -> ModelSpec:
    """One artefact of a model of the catalog."""
    return next(each for each in variants(name) if each.quantization == quantization)


def box(*gpus: str, ram_gb: float | None = None, cpus: int | None = None) -> HardwareProfile:
    """An imagined machine: "RTX 4090:2", or "none"."""
    return imagine(table(), gpus=gpus, ram_gb=ram_gb, cpus=cpus)


def held(hardware: HardwareProfile, **free: int) -> HardwareProfile:
    """The same machine with other free memory: `gpu0=bytes`, `gpu1=bytes`, …"""
    gpus = tuple(
        gpu.model_copy(update={"vram_free": free.get(f"gpu{at}", gpu.vram_free)})
        for at, gpu in enumerate(hardware.gpus)
    )
    return hardware.model_copy(update={"gpus": gpus})


def with_gpus(hardware: HardwareProfile, **changes: Any) -> HardwareProfile:
    """The same machine, every card changed alike."""
    gpus = tuple(gpu.model_copy(update=changes) for gpu in hardware.gpus)
    return hardware.model_copy(update={"gpus": gpus})


def advised(name: str, hardware: HardwareProfile, **pins: Any) -> EnginePlan:
    """What `engineroom plan` would say. Raises NoEngineFits."""
    return Advisor(hardware, load_settings(pins, {})).plan(variants(name))


def planned(
    model: str | tuple[ModelSpec, ...], hardware: HardwareProfile, **pins: Any
) -> EnginePlan:
    """The same without reading the tables each time. Raises NoEngineFits."""
    chosen = variants(model) if isinstance(model, str) else model
    wish = wish_of(load_settings(pins, {}))
    return make_plan(chosen, hardware, tiers(), launchers(), wish, table())


def card(index: int, name: str, total: int, free: int | None = None, **changes: Any) -> Gpu:
    """A hand-made NVIDIA card."""
    return Gpu(
        index=index, uuid=f"u{index}", name=name, vendor="nvidia", vram_total=total,
        vram_free=total if free is None else free, **changes,
    )  # fmt: skip
