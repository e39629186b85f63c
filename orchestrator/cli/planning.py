"""`engineroom probe` and `engineroom plan`: look, and say what would run. Nothing is started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from engine_launchers.base import EnginePlan, LaunchSpec, Listen
from engine_launchers.machine import HardwareProfile
from orchestrator.advice import Advisor
from orchestrator.cli import show, show_plan
from orchestrator.cli.options import (
    AdapterPath,
    Adapters,
    Backend,
    Config,
    Context,
    DataDir,
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
    out,
    print_json,
)
from orchestrator.engines.shelf import Engine
from orchestrator.errors import ConfigError, EngineMissing
from orchestrator.models.chosen import chosen as chosen_model
from orchestrator.planning.hypothetical import MOST_GPUS
from orchestrator.planning.hypothetical import machine as imagine
from orchestrator.resources import demo_dir
from orchestrator.settings import Settings, load_settings
from orchestrator.startup import engine_of, machine, shelf_of, with_lessons
from orchestrator.tables import load_gpus

_LONGEST_PROFILE = 4 << 20
_ADVICE = "give what `engineroom probe --json` prints"
_EXAMPLE_PORT = 8100  # `plan` has to show one; a launch takes any free port


def probe(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show what this machine offers: GPUs, cores, memory, limits."""
    profile = machine(load_settings({"data_dir": data_dir}))
    if as_json:
        print_json(profile.model_dump(mode="json"))
    else:
        show.hardware(out(), profile)


def plan(
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
    goal: Goal = None,
    context: Context = None,
    users: Users = None,
    threads: Threads = None,
    quantization: Quantization = None,
    adapter_path: AdapterPath = None,
    adapters: Adapters = None,
    force_backend: Backend = None,
    engine_args: EngineArgs = None,
    force_cpu: ForceCpu = None,
    tensor_parallel_size: Parallel = None,
    gpu_memory_utilization: MemoryShare = None,
    gpu_layers: GpuLayers = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Rank the catalog: what can this machine run?")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Every rejected plan, and what is tried next.")
    ] = False,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say what would run, why, with how much memory, how fast, and by which command.

    A dry run for this machine, or for any other.
    """
    settings = load_settings(given(locals()), file=config)
    if everything and model is not None:
        raise typer.BadParameter("give a model or --all, not both")
    advisor = Advisor(machine_of(settings, gpu or [], vram_gb, ram_gb, cpus, hardware), settings)
    if everything:
        lines = advisor.everything()
        if as_json:
            print_json([show_plan.line_as_json(line) for line in lines])
        else:
            show_plan.ranking(out(), advisor.hardware, lines, explain)
        return
    resolved = chosen_model(
        settings.model, demo_dir(), None, settings.adapter_path, settings.adapters
    )
    chosen = advisor.plan_for(resolved)
    spec, version = _command(advisor, settings, chosen)
    if not (gpu or vram_gb or ram_gb or cpus or hardware):
        versioned = chosen.model_copy(update={"engine_version": version})
        chosen = with_lessons(versioned, advisor.hardware, settings.data)
        spec, _ = _command(advisor, settings, chosen)
    if as_json:
        command = {"argv": list(spec.argv), "env": spec.env, "injected": list(spec.injected)}
        print_json({**chosen.model_dump(mode="json"), "command": command})
    else:
        show_plan.plan(out(), chosen, spec, explain)


def machine_of(
    settings: Settings,
    gpus: list[str],
    vram_gb: float | None,
    ram_gb: float | None,
    cpus: int | None,
    file: Path | None,
) -> HardwareProfile:
    """This machine, one from a file, or one that is only imagined."""
    base = _read(file) if file else None
    if not gpus and vram_gb is None:
        base = base or machine(settings)
        if ram_gb is None and cpus is None:
            return base
    return imagine(load_gpus(), gpus=gpus, vram_gb=vram_gb, ram_gb=ram_gb, cpus=cpus, base=base)


def _read(file: Path) -> HardwareProfile:
    try:
        with file.open("rb") as opened:
            data = opened.read(_LONGEST_PROFILE + 1)
        if len(data) > _LONGEST_PROFILE:
            raise ConfigError(f"--hardware {file}: longer than any profile; {_ADVICE}")
        profile = HardwareProfile.model_validate_json(data)
    except OSError as error:
        raise ConfigError(f"--hardware {file}: {error.strerror}") from error
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ConfigError(
            f"--hardware {file}: {place}: {first['msg'].lower()}; {_ADVICE}"
        ) from error
    if wrong := _contradiction(profile):
        raise ConfigError(f"--hardware {file}: {wrong}; {_ADVICE}")
    return profile


def _contradiction(profile: HardwareProfile) -> str:
    """What cannot be true of a machine; empty where nothing was found."""
    if len(profile.gpus) > MOST_GPUS:
        return f"{len(profile.gpus)} GPUs, at most {MOST_GPUS} are planned for"
    if len({gpu.uuid for gpu in profile.gpus}) < len(profile.gpus):
        return "two GPUs have the same uuid"
    if profile.ram_available > profile.ram_total:
        return "ram_available is more than ram_total"
    for gpu in profile.gpus:
        if gpu.vram_free > gpu.vram_total:
            return f"gpu {gpu.index}: vram_free is more than vram_total"
        if gpu.compute_capability and min(gpu.compute_capability) < 0:
            return f"gpu {gpu.index}: compute_capability is negative"
    return ""


def _command(advisor: Advisor, settings: Settings, chosen: EnginePlan) -> tuple[LaunchSpec, str]:
    """The command line, with the program that the engine has, or would have, on this machine; and
    the engine's version there."""
    shelf = shelf_of(settings)
    spec = advisor.launchers[chosen.engine].command(chosen, Listen(port=_EXAMPLE_PORT))
    try:
        found = engine_of(settings, shelf, chosen.engine, advisor.hardware)
    except EngineMissing:  # another machine's plan: what it needs cannot be installed here
        return spec.with_engine(chosen.engine), chosen.engine_version
    program = found.program if isinstance(found, Engine) else str(shelf.path(found) / found.program)
    return spec.with_engine(program), found.version
