"""From settings to a decision: what this version refuses, the machine, the plan that follows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine_launchers import LAUNCHERS, load_launcher
from engine_launchers.base import EngineName, EnginePlan, Launcher
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.advice import wish_of, without_gpus
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.shelf import Engine, Shelf
from orchestrator.engines.table import EngineTable
from orchestrator.errors import ConfigError, ModelInvalid
from orchestrator.hardware import probe
from orchestrator.models.resolve import Resolved, resolve
from orchestrator.planning.planner import fingerprint, make_plan
from orchestrator.resources import demo_dir
from orchestrator.runtimes.process import resident_bytes
from orchestrator.settings import Settings
from orchestrator.tables import load_gpus, load_tiers


@dataclass(frozen=True)
class Decision:
    """What will run, on what."""

    hardware: HardwareProfile
    plan: EnginePlan
    fingerprint: str
    launchers: Mapping[EngineName, Launcher]
    shelf: Shelf
    engine: Engine | Requirement


@dataclass(frozen=True)
class Means:
    """What a caller brings who has launchers of their own: those, and where they come from."""

    launchers: Mapping[EngineName, Launcher]
    engines: EngineTable


def all_launchers() -> dict[EngineName, Launcher]:
    """Every engine that this version can start."""
    return {name: load_launcher(name) for name in LAUNCHERS}


def refuse_unsupported(settings: Settings, launchers: Mapping[EngineName, Launcher]) -> None:
    """Raise ConfigError for a setting that would otherwise be ignored."""
    able = ", ".join(launchers)
    if settings.port == settings.admin_port != 0:
        raise ConfigError(f"port and admin_port are both {settings.port}: choose two")
    if settings.force_backend and settings.force_backend not in launchers:
        raise ConfigError(
            f"FORCE_BACKEND={settings.force_backend}: this version starts {able} only; unset it"
        )
    if settings.adapter_path:
        raise ConfigError(
            f"ADAPTER_PATH={settings.adapter_path}: this version cannot apply adapters yet; unset "
            "it, or serve a GGUF file into which the adapter was merged"
        )
    if settings.tensor_parallel_size not in (None, 1):
        raise ConfigError(
            f"TENSOR_PARALLEL_SIZE={settings.tensor_parallel_size}: {able} runs on one device; "
            "unset it or set 1"
        )
    for name in ("gpu_layers", "gpu_memory_utilization"):
        if getattr(settings, name) not in (None, 0):
            raise ConfigError(f"{name}: this version serves from the processor only; unset it")
    if settings.users not in (None, 1):
        raise ConfigError(f"users={settings.users}: {able} answers one request at a time; unset it")
    if settings.enable_compile:
        raise ConfigError(
            "ENABLE_COMPILE=1: torch.compile belongs to the pytorch engine, which this version "
            "cannot start yet; unset it"
        )


def shelf_of(settings: Settings, table: EngineTable | None = None) -> Shelf:
    """The engines that `settings` lead to."""
    return Shelf(settings.engines, os.environ, table, settings.cache)


def decide(settings: Settings, means: Means | None = None) -> Decision:
    """Probe, read the model, plan. Raises ConfigError, ModelInvalid, NoEngineFits, EngineMissing.

    Nothing is installed: the decision's `engine` is what is there, or what would have to be.
    """
    able = all_launchers() if means is None else means.launchers
    refuse_unsupported(settings, able)
    models = _servable(resolve(settings.model, demo_dir(), settings.quantization))
    hardware = machine(settings)
    why = "force_cpu" if settings.force_cpu else "this version builds llama.cpp for processors"
    hardware = without_gpus(_with_ours(hardware, settings), why)
    # The artefact was chosen by the wish already; what it holds is not asked again.
    wish = wish_of(settings).model_copy(update={"tensor_parallel": None})
    plan = make_plan(models, hardware, load_tiers(), able, wish, load_gpus())
    changed = Path(plan.model.source).stat().st_mtime_ns
    name = fingerprint(wish, plan.model, plan.engine_version, changed)
    shelf = shelf_of(settings, means.engines if means else None)
    engine = shelf.find(plan.engine, hardware, version=plan.engine_version)
    return Decision(hardware, plan, name, able, shelf, engine)


def machine(settings: Settings) -> HardwareProfile:
    """This machine, with its memory bandwidth: measured once a boot, kept in the cache folder."""
    return probe(bandwidth_cache=settings.cache)


def _servable(resolved: Resolved) -> tuple[ModelSpec, ...]:
    """The GGUF variants that lie on this machine: this version serves no others."""
    ggufs = [each for each in resolved.variants if each.format == "gguf"]
    here = tuple(each for each in ggufs if not each.source.startswith("hf://"))
    if here:
        return here
    if ggufs:
        address = ggufs[0].source.removeprefix("hf://")
        raise ModelInvalid(
            f"{resolved.name}: not on this machine yet: run `engineroom pull {address}` first"
        )
    raise ModelInvalid(
        f"{resolved.name}: a folder of safetensors; this version serves GGUF files only: give one"
    )


def _with_ours(hardware: HardwareProfile, settings: Settings) -> HardwareProfile:
    """Count what our own running engines hold as available: they are adopted, or make room."""
    ours = resident_bytes(settings.data / "instances")
    available = min(hardware.ram_total, hardware.ram_available + ours)
    return hardware.model_copy(update={"ram_available": available})
