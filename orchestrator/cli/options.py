"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
Backend = Annotated[str | None, typer.Option(help="vllm, llama_server, llama_cpp or pytorch.")]
ForceCpu = Annotated[bool | None, typer.Option("--force-cpu", help="Use no GPU.")]
Goal = Annotated[str | None, typer.Option(help="throughput, latency, quality or memory.")]
Drain = Annotated[float | None, typer.Option(help="Seconds for requests in flight.")]


def out() -> Console:
    """Standard output, as wide as the terminal."""
    return Console()


def print_json(value: object) -> None:
    """One JSON document on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
