"""`engineroom doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from engine_launchers.machine import HardwareProfile
from orchestrator.cli.options import Config, DataDir, Json, out, print_json
from orchestrator.cli.show import print_plain
from orchestrator.doctor.judging import judge
from orchestrator.doctor.looking import look
from orchestrator.engines.doctor import examine
from orchestrator.engines.findings import Finding
from orchestrator.hardware import probe
from orchestrator.settings import Settings, load_settings
from orchestrator.startup import shelf_of

Quick = Annotated[bool, typer.Option("--quick", help="Start no engine to see whether it can.")]
Troubles = Annotated[bool, typer.Option("--wrong", help="Print only what is wrong.")]


def doctor(
    quick: Quick = False,
    wrong: Troubles = False,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check the machine, the folders, the ports, the engines and the server; 1 if any is wrong."""
    settings = load_settings({"data_dir": data_dir}, file=config)
    found: list[Finding] = []
    for finding in _findings(settings, probe(), quick):
        if wrong and finding.level != "wrong":
            continue
        found.append(finding)
        if not as_json:
            print_plain(out(), finding.line)
    if as_json:
        print_json([each.model_dump() for each in found])
    if any(each.level == "wrong" for each in found):
        raise typer.Exit(1)


def _findings(settings: Settings, hardware: HardwareProfile, quick: bool) -> Iterator[Finding]:
    yield from judge(look(settings, hardware))
    if not quick:
        yield from examine(shelf_of(settings), hardware)
