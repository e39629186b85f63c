"""`engineroom generate`: files by which something else runs what was planned."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.advice import Advisor
from orchestrator.cli.options import (
    AdapterPath,
    Adapters,
    Aliases,
    Backend,
    Context,
    EngineArgs,
    ForceCpu,
    Goal,
    GpuLayers,
    Json,
    MemoryShare,
    Model,
    Parallel,
    Quantization,
    Threads,
    Users,
    given,
    print_json,
)
from orchestrator.cli.planning import machine_of
from orchestrator.contradictions import refuse_contradictions
from orchestrator.generating import compose, kube, quadlet
from orchestrator.generating.deployment import deployment_of
from orchestrator.models.adapters import base_of, is_adapter_folder
from orchestrator.models.chosen import chosen
from orchestrator.models.resolve import is_path
from orchestrator.resources import demo_dir
from orchestrator.settings import Settings, load_settings


class Kind(StrEnum):
    """What can be generated."""

    COMPOSE = "compose"
    QUADLET = "quadlet"
    KUBE = "kube"


_MAKERS = {Kind.COMPOSE: compose, Kind.QUADLET: quadlet, Kind.KUBE: kube}


def generate(
    kind: Annotated[Kind, typer.Argument(help="compose, quadlet (Podman and systemd) or kube.")],
    model: Model = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help='For another machine: "RTX 4090:2"; repeatable.')
    ] = None,
    vram_gb: Annotated[float | None, typer.Option(help="Memory of its GPUs, GB each.")] = None,
    ram_gb: Annotated[float | None, typer.Option(help="Its RAM, GB.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Its physical cores.")] = None,
    hardware: Annotated[
        Path | None, typer.Option(help="Another machine, as `probe --json` printed it.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="Image instead of localhost/engineroom/all-in-one of this version, which is "
            "published nowhere: name the one that you have built."
        ),
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Serve whoever reaches it, without keys.")
    ] = False,
    goal: Goal = None,
    context: Context = None,
    users: Users = None,
    threads: Threads = None,
    quantization: Quantization = None,
    adapter_path: AdapterPath = None,
    adapters: Adapters = None,
    aliases: Aliases = None,
    force_backend: Backend = None,
    engine_args: EngineArgs = None,
    force_cpu: ForceCpu = None,
    tensor_parallel_size: Parallel = None,
    gpu_memory_utilization: MemoryShare = None,
    gpu_layers: GpuLayers = None,
    as_json: Json = False,
) -> None:
    """Print a file by which Compose, Podman with systemd, or Kubernetes runs a model's plan.

    The plan is that of `engineroom plan` with the same options. The file has no secrets: API keys
    are not handed on, and flags of an engine that carry one are refused.

    engineroom generate compose demo > compose.yaml

    engineroom generate kube qwen3-8b --gpu "L40S:1" > engineroom.yaml
    """
    settings = _base_and_adapter(load_settings(given(locals())))
    refuse_contradictions(settings)
    machine = machine_of(settings, gpu or [], vram_gb, ram_gb, cpus, hardware)
    named = (settings.adapter_path, settings.adapters, settings.aliases)
    plan = Advisor(machine, settings).plan_for(chosen(settings.model, demo_dir(), None, *named))
    local = is_path(settings.model)
    what = deployment_of(plan, settings, str(demo_dir()), image, anonymous, local)
    text = _MAKERS[kind].render(what)
    if as_json:
        print_json({"kind": kind, "file": _MAKERS[kind].FILE, "plan": plan.id, "text": text})
    else:
        sys.stdout.write(text)


def _base_and_adapter(settings: Settings) -> Settings:
    """A folder that holds an adapter stands for its base model with the adapter applied."""
    folder = Path(settings.model).expanduser()
    if settings.adapter_path or not is_path(settings.model) or not is_adapter_folder(folder):
        return settings
    return settings.model_copy(update={"model": base_of(folder), "adapter_path": settings.model})
