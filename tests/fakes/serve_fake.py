"""`engineroom serve`, with the fake engine in place of llama.cpp.

    python -m tests.fakes.serve_fake '{"knobs": [...], "settings": {...}, "serial": true}'

Prints the ready line of `serve --json`. Everything but the launcher is the real thing.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from pathlib import Path

from rich.console import Console

from engine_launchers.machine import HardwareProfile
from orchestrator.cli.main import guarded
from orchestrator.cli.serving import Screen
from orchestrator.engines.choosing import requirement
from orchestrator.engines.marker import write_marker
from orchestrator.engines.table import EngineTable, parse_engine_table
from orchestrator.observability.logs import configure
from orchestrator.serve import serve
from orchestrator.settings import load_settings
from orchestrator.startup import Means, decide
from tests.fakes.launcher import FakeLauncher

_HERE = f"{platform.system().lower()}-{platform.machine()}"


def fake_environment(folder: Path) -> None:
    """An installed engine whose interpreter is the one that runs the tests."""
    target = folder / "llama_cpp-fake"
    (target / "bin").mkdir(parents=True, exist_ok=True)
    python = target / "bin" / "python"
    if not python.exists():
        python.symlink_to(sys.executable)
    nowhere = HardwareProfile(ram_total=1, ram_available=1, cpu_cores=1, platform=_HERE)
    write_marker(target, requirement(fake_table(), "llama_cpp", nowhere))


def fake_table() -> EngineTable:
    """The engine table of the fake: nothing to install, on this platform."""
    flavour = {"platforms": [_HERE], "disk_gib": 0.001}
    version = {"version": FakeLauncher.version, "flavours": {"cpu": flavour}}
    entry = {"program": "bin/python", "versions": [version]}
    return parse_engine_table({"engines": {"llama_cpp": entry}})


def means(launcher: FakeLauncher) -> Means:
    """What the command is given in place of the real launchers."""
    return Means({"llama_cpp": launcher}, fake_table())


def main() -> None:
    """Serve until told to stop."""
    order = json.loads(sys.argv[1])
    settings = load_settings(order["settings"], env={})
    configure(settings.log_level)
    fake_environment(settings.engines)
    launcher = FakeLauncher(order.get("knobs", ()), order.get("serial", True))
    decision = decide(settings, means(launcher))
    screen = Screen(Console(), Console(stderr=True), as_json=True)
    asyncio.run(serve(settings, decision, screen))


if __name__ == "__main__":
    guarded(main)
