"""`engineroom calibration`: what was learned of engines on this machine, and how to forget it."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Annotated

import httpx
import typer

from orchestrator.cli.client import ask, find_server
from orchestrator.cli.options import DataDir, Json, out, print_json
from orchestrator.cli.show import columns, gib, print_plain
from orchestrator.errors import ControlUnavailable
from orchestrator.planning.experience import Experience
from orchestrator.settings import load_settings
from orchestrator.supervision.calibration import remembered
from orchestrator.supervision.lock import only_one
from orchestrator.supervision.store import Store

_HEAD = (
    *("MODEL", "PRECISION", "CONTEXT", "ENGINE", "VERSION", "RUNG", "MEMORY", "LOADED", "TOKENS/S"),
    *("SEEN", "ON"),
)

app = typer.Typer(
    name="calibration",
    help="What was learned by running engines here; the next plans use it.",
    no_args_is_help=True,
)


@app.command("list")
def list_learned(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Everything that is known, latest first."""
    known = remembered(load_settings({"data_dir": data_dir}).data)
    rows = sorted(known.values(), key=lambda each: -each.at)
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
    elif rows:
        columns(out(), [_HEAD, *map(_cells, rows)])
    else:
        print_plain(out(), "nothing was learned yet: it is when an engine has run for a while")


@app.command()
def clear(
    model: Annotated[str | None, typer.Argument(help="Only of this model; none: all.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Forget what was learned: the next plans are made as on the first day."""
    count = _clear(data_dir, model)
    if as_json:
        print_json({"forgotten": count})
    else:
        print_plain(out(), f"forgotten: {count}")


def _clear(data_dir: Path | None, model: str | None) -> int:
    """Through the running server, which holds the file; or, where none runs, ourselves."""
    query = f"?{httpx.QueryParams({'model': model})}" if model else ""
    try:
        answer = ask(find_server(data_dir), "DELETE", f"/admin/calibration{query}")
    except ControlUnavailable:
        data = load_settings({"data_dir": data_dir}).data
        if not data.is_dir():
            return 0
        os.umask(0o077)
        with only_one(data / "supervisor.lock"), closing(Store(data / "state.db")) as store:
            return store.unlearn(model)
    return int(answer["forgotten"])


def _cells(row: Experience) -> tuple[str, ...]:
    key = row.key
    memory = ", ".join(f"{device} {gib(size)}" for device, size in row.memory.items())
    return (
        key.model,
        key.quantization,
        str(key.context or "-"),
        key.engine,
        key.version,
        str(row.rung),
        memory or "-",
        "-" if row.load_seconds is None else f"{row.load_seconds:.1f} s",
        "-" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}",
        f"{datetime.fromtimestamp(row.at).astimezone():%Y-%m-%d}",
        ", ".join(key.devices),
    )
