"""Engines that come in a container image."""

from __future__ import annotations

from pathlib import Path

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from orchestrator.engines.choosing import requirement
from orchestrator.engines.shelf import Engine
from orchestrator.engines.table import EngineTable
from orchestrator.errors import EngineMissing


def in_image(
    table: EngineTable,
    engine: EngineName,
    hardware: HardwareProfile,
    *,
    version: str | None = None,
    path: Path | None = None,
    image: str | None = None,
) -> Engine:
    """An engine in its image; `image`, and `path` in it, take the place of the table's.

    Whether the image is here, or can be had, shows when it is started. Raises EngineMissing where
    the machine cannot run it, or where no image is known.
    """
    need = requirement(table, engine, hardware, version, python=None)
    chosen = image or need.image
    if chosen is None:
        raise EngineMissing(
            f"{engine}: no image is published for it: build one, and name it with engine_image"
        )
    return Engine(
        name=engine,
        version=need.version,
        origin="image",
        program=str(path or table.engines[engine].image_program),
        flavour=need.flavour,
        image=chosen,
    )
