"""`engineroom engines`: list, install, remove and examine the engines of this machine."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from engine_launchers.base import EngineName
from orchestrator.cli.options import Config, DataDir, Json, out, print_json
from orchestrator.cli.progress import InstallationLine
from orchestrator.cli.show import duration, gib, print_plain
from orchestrator.endings import on_signals
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.doctor import examine
from orchestrator.engines.overview import Row, overview
from orchestrator.engines.shelf import Engine, Shelf
from orchestrator.errors import EngineMissing
from orchestrator.hardware import probe
from orchestrator.settings import load_settings
from orchestrator.startup import shelf_of

Name = Annotated[str, typer.Argument(help="vllm, llama_server, llama_cpp or pytorch.")]
Version = Annotated[str | None, typer.Option(help="A version that `engines list` shows.")]
Flavour = Annotated[str | None, typer.Option(help="cuda, rocm, metal or cpu.")]
_INTERRUPTED = 130

app = typer.Typer(
    name="engines", help="Engines in environments of their own.", no_args_is_help=True
)


@app.command("list")
def list_engines(data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """Every engine and version: installed, on PATH, installable, or why not."""
    rows = overview(_shelf(data_dir, config), probe())
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("engine", "version", "flavour", "state", "size", "where, or why not"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    out().print(table)


def _cells(row: Row) -> tuple[str, ...]:
    version = f"{row.version} *" if row.newest else row.version
    taken = gib(row.bytes) if row.bytes else ""
    place = "; ".join(filter(None, (str(row.path or ""), row.why)))
    return row.engine, version, row.flavour or "", row.state, taken, place


@app.command()
def install(
    engine: Name,
    version: Version = None,
    flavour: Flavour = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Install an engine, or go on with an installation that was interrupted."""
    shelf = _shelf(data_dir, config)
    need = shelf.wanted(_known(shelf, engine), probe(), version, flavour)
    notes = Console(stderr=True)
    if need.note:
        print_plain(notes, need.note)
    line = InstallationLine(notes, f"{need.engine} {need.version} ({need.flavour})")
    try:
        found, seconds = asyncio.run(_install(shelf, need, line))
    finally:
        line.end()
    if found is None:
        print_plain(notes, "stopped; the same command goes on with it")
        raise typer.Exit(_INTERRUPTED)
    if as_json:
        print_json({**found.model_dump(mode="json"), "seconds": round(seconds, 1)})
    else:
        text = (
            f"{found.name} {found.version} ({found.flavour}), {duration(seconds)}: {found.program}"
        )
        print_plain(out(), text)


async def _install(
    shelf: Shelf, need: Requirement, line: InstallationLine
) -> tuple[Engine | None, float]:
    """The engine, None where a signal ended it, and the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    work = loop.create_task(shelf.install(need, line))
    on_signals(work.cancel)
    await asyncio.wait({work})
    return None if work.cancelled() else work.result(), loop.time() - began


@app.command()
def remove(
    engine: Name,
    version: Version = None,
    flavour: Flavour = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Remove an installed engine, unless it runs."""
    shelf = _shelf(data_dir, config)
    gone = shelf.remove(_known(shelf, engine), version, flavour)
    if as_json:
        print_json({"removed": str(gone.folder), "engine": gone.engine, "version": gone.version})
    else:
        print_plain(out(), f"removed {gone.folder}")


@app.command()
def doctor(
    engine: Annotated[str | None, typer.Argument(help="Only this engine.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Start every installed engine once, and look for what is broken or left behind."""
    shelf = _shelf(data_dir, config)
    name = None if engine is None else _known(shelf, engine)
    findings = []
    for finding in examine(shelf, probe(), name):
        findings.append(finding)
        if not as_json:
            print_plain(out(), finding.line)
    if as_json:
        print_json([each.model_dump(mode="json") for each in findings])
    if any(each.level == "wrong" for each in findings):
        raise typer.Exit(1)


def _shelf(data_dir: DataDir, config: Config) -> Shelf:
    return shelf_of(load_settings({"data_dir": data_dir}, file=config))


def _known(shelf: Shelf, name: str) -> EngineName:
    if name not in shelf.table.engines:
        raise EngineMissing(
            f"no engine is called {name}: this version installs {', '.join(shelf.table.engines)}"
        )
    return name
