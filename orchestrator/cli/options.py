"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from orchestrator.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="State and logs [~/.local/share/engineroom].", show_default=False),
]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings.")]
Model = Annotated[
    str | None,
    typer.Argument(help="A name of the catalog, `demo`, a GGUF file, a folder, or owner/name."),
]
Context = Annotated[int | None, typer.Option(help="Tokens per sequence; pins the plan.")]
Threads = Annotated[int | None, typer.Option(help="Engine threads; pins the plan.")]
Quantization = Annotated[str | None, typer.Option(help="4bit, 8bit or none.")]
Backend = Annotated[
    str | None,
    typer.Option("--engine", "--force-backend", help="vllm, llama_server, llama_cpp or pytorch."),
]
EngineVersion = Annotated[str | None, typer.Option(help="Version of that engine.")]
EnginePath = Annotated[Path | None, typer.Option(help="Program of that engine, used as it is.")]
EngineImage = Annotated[
    str | None, typer.Option(help="Image of that engine, with --runtime docker.")
]
Runtime = Annotated[str | None, typer.Option(help="Where engines run: process or docker.")]
EngineArgs = Annotated[str | None, typer.Option(help="Flags for the engine; they win.")]
AdapterPath = Annotated[
    str | None, typer.Option(help="A LoRA adapter, applied whenever the model is asked.")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="NAME=PATH of a LoRA adapter, a model of its own; repeatable."),
]
Aliases = Annotated[
    list[str] | None, typer.Option("--alias", help="A further name of the model; repeatable.")
]
Parallel = Annotated[int | None, typer.Option(help="GPUs per engine; pins the plan.")]
MemoryShare = Annotated[float | None, typer.Option(help="Share of a card for vLLM; pins the plan.")]
GpuLayers = Annotated[
    int | None, typer.Option(help="Layers on the GPU for llama.cpp; pins the plan.")
]
Users = Annotated[
    int | None, typer.Option(help="Requests with a full context that must fit at once.")
]
ForceCpu = Annotated[bool | None, typer.Option("--force-cpu", help="Use no GPU.")]
Goal = Annotated[str | None, typer.Option(help="throughput, latency, quality or memory.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Gateway processes that share the port; by default one per four processors."),
]
Drain = Annotated[float | None, typer.Option(help="Seconds for requests in flight.")]


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A command's arguments that are settings and were given; an empty list was not."""
    return {
        name: value
        for name, value in arguments.items()
        if name in Settings.model_fields and value not in (None, [])
    }


def out() -> Console:
    """Standard output, as wide as the terminal."""
    return Console()


def print_json(value: object) -> None:
    """One JSON document on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
