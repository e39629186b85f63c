"""`engineroom serve`, with the fake engine in place of llama.cpp.

    python -m tests.fakes.serve_fake '{"knobs": [...], "settings": {...}, "serial": true}'

Prints the ready line of `serve --json`. Everything but the launcher is the real thing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from rich.console import Console

from orchestrator.cli.main import guarded
from orchestrator.cli.serving import Screen
from orchestrator.observability.logs import configure
from orchestrator.serve import serve
from orchestrator.settings import load_settings
from orchestrator.startup import decide
from orchestrator.supervision.environments import MARKER
from tests.fakes.launcher import FakeLauncher


def fake_environment(folder: Path) -> None:
    """An installed engine whose interpreter is the one that runs the tests."""
    target = folder / "llama_cpp-fake"
    (target / "bin").mkdir(parents=True, exist_ok=True)
    python = target / "bin" / "python"
    if not python.exists():
        python.symlink_to(sys.executable)
    marker: dict[str, object] = {"packages": [], "built_for": None, "build_env": {}}
    (target / MARKER).write_text(json.dumps(marker))


def main() -> None:
    """Serve until told to stop."""
    order = json.loads(sys.argv[1])
    settings = load_settings(order["settings"], env={})
    configure(settings.log_level)
    fake_environment(settings.engines)
    launcher = FakeLauncher(order.get("knobs", ()), order.get("serial", True))
    decision = decide(settings, {"llama_cpp": launcher})
    screen = Screen(Console(), Console(stderr=True), as_json=True)
    asyncio.run(serve(settings, decision, screen))


if __name__ == "__main__":
    guarded(main)
