"""From settings to a decision: what this version refuses, the machine, the plan that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine_launchers import LAUNCHERS, load_launcher
from engine_launchers.base import EngineName, EnginePlan, Launcher
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.errors import ConfigError, ModelInvalid
from orchestrator.hardware import probe
from orchestrator.models.resolve import Resolved, resolve
from orchestrator.planning.planner import Wish, make_plan
from orchestrator.planning.tiers import parse_tiers
from orchestrator.resources import config_path, demo_dir
from orchestrator.runtimes.process import resident_bytes
from orchestrator.settings import Settings


@dataclass(frozen=True)
class Decision:
    """What will run, on what."""

    hardware: HardwareProfile
    plan: EnginePlan
    fingerprint: str
    launchers: Mapping[EngineName, Launcher]


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
    if settings.enable_compile:
        raise ConfigError(
            "ENABLE_COMPILE=1: torch.compile belongs to the pytorch engine, which this version "
            "cannot start yet; unset it"
        )


def decide(settings: Settings, launchers: Mapping[EngineName, Launcher] | None = None) -> Decision:
    """Probe, read the model, plan. Raises ConfigError, ModelInvalid or NoEngineFits."""
    able = all_launchers() if launchers is None else launchers
    refuse_unsupported(settings, able)
    model = _servable(resolve(settings.model, demo_dir(), settings.quantization))
    tiers = parse_tiers(yaml.safe_load(config_path("tiers.yaml").read_text()))
    hardware = _with_ours(probe(), settings)
    if settings.force_cpu:
        hardware = _without_gpus(hardware)
    wish = Wish(
        engine=settings.force_backend,
        max_model_len=settings.context,
        threads=settings.threads,
        force_cpu=settings.force_cpu,
    )
    plan = make_plan(model, hardware, tiers, able, wish)
    changed = Path(model.source).stat().st_mtime_ns
    return Decision(hardware, plan, wish.fingerprint(model, plan.engine_version, changed), able)


def _servable(resolved: Resolved) -> ModelSpec:
    """The first GGUF variant that lies on this machine: this version serves no other."""
    ggufs = [each for each in resolved.variants if each.format == "gguf"]
    for each in ggufs:
        if not each.source.startswith("hf://"):
            return each
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


def _without_gpus(hardware: HardwareProfile) -> HardwareProfile:
    """The machine as one that has no GPU, with a note that says so."""
    if not hardware.gpus:
        return hardware
    note = f"force_cpu: {hardware.gpu_count} GPUs are not used"
    notes = (*hardware.notes, note)
    return hardware.model_copy(update={"gpus": (), "links": (), "notes": notes})
