"""`engineroom serve`, with the fake engine in place of llama.cpp.

    python -m tests.fakes.serve_fake '{"knobs": [...], "settings": {...}, "serial": true}'

Prints the ready line of `serve --json`. Everything but the launcher is the real thing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from orchestrator.cli.main import guarded
from orchestrator.cli.serving import Screen
from orchestrator.engines.shelf import Shelf
from orchestrator.observability.logs import configure
from orchestrator.serve import serve
from orchestrator.settings import Settings, load_settings
from orchestrator.startup import Planning
from tests.fakes.launcher import FakeLauncher


def main() -> None:
    """Serve until told to stop."""
    order = json.loads(sys.argv[1])
    # The fake is a Python program: the interpreter that runs the tests is its engine.
    given = {"force_backend": "llama_cpp", "engine_path": sys.executable}
    file = Path(order["file"]) if order.get("file") else None

    def read() -> Settings:
        return load_settings({**given, **order["settings"]}, env={}, file=file)

    settings = read()
    configure(settings.log_level, settings.log_format)
    launcher = FakeLauncher(order.get("knobs", ()), order.get("serial", True))
    shelf = Shelf(settings.engines, os.environ)
    planning = Planning(shelf, read, {"llama_cpp": launcher}, file=file)
    screen = Screen(Console(), Console(stderr=True), as_json=True)
    asyncio.run(serve(settings, planning.decide(settings), planning, screen))


if __name__ == "__main__":
    guarded(main)
