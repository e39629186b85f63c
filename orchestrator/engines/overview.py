"""Every engine and version, and how it stands on this machine: what `engines list` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value
from orchestrator.engines.removing import size
from orchestrator.engines.shelf import Shelf
from orchestrator.errors import EngineMissing

_LEFT = "no longer in the table: used until the newest is installed, or where it is asked for"


class Row(Value):
    """One engine, version and flavour. `why` is a reason or a remark, `bytes` what it takes."""

    engine: EngineName
    version: str
    flavour: str | None = None
    state: Literal["installed", "on PATH", "installable", "not possible"]
    why: str = ""
    newest: bool = False
    bytes: int | None = None
    path: Path | None = None


def overview(shelf: Shelf, hardware: HardwareProfile) -> list[Row]:
    """The rows in the order of the table, what lies on the shelf before what could."""
    rows: list[Row] = []
    for engine, entry in shelf.table.engines.items():
        rows += _there(shelf, engine, hardware)
        if found := shelf.on_path(engine):
            path = Path(found.program)
            rows.append(Row(engine=engine, version=found.version, state="on PATH", path=path))
        for version in entry.versions:
            have = {
                row.flavour
                for row in rows
                if (row.engine, row.version) == (engine, version.version)
            }
            newest = version is entry.default
            try:
                need = shelf.wanted(engine, hardware, version.version)
            except EngineMissing as error:
                why = error.message
                rows.append(
                    Row(
                        engine=engine,
                        version=version.version,
                        state="not possible",
                        why=why,
                        newest=newest,
                    )
                )
                continue
            if need.flavour not in have:
                rows.append(
                    Row(
                        engine=engine,
                        version=version.version,
                        flavour=need.flavour,
                        state="installable",
                        why=need.note,
                        newest=newest,
                    )
                )
    return rows


def _there(shelf: Shelf, engine: EngineName, hardware: HardwareProfile) -> list[Row]:
    default = shelf.table.engines[engine].default.version
    return [
        Row(
            engine=engine,
            version=row.version,
            flavour=row.flavour,
            state="installed",
            why=shelf.objection(row, hardware) or ("" if shelf.listed(row) else _LEFT),
            newest=row.version == default,
            bytes=size(row.folder),
            path=row.folder,
        )
        for row in shelf.installed()
        if row.engine == engine
    ]
