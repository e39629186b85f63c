"""The `engineroom` command with the fake engine in place of llama.cpp, for the library's tests.

    python -m tests.fakes.engineroom_fake '["--tps", "20"]' serve --tied --json ...

The first argument holds the fake's knobs; the rest is what `engineroom` takes. Everything but the
launcher is the real thing.
"""

from __future__ import annotations

import json
import os
import sys

from orchestrator.cli.main import app, guarded
from tests.fakes.launcher import FakeLauncher


def main() -> None:
    """Run one command."""
    knobs = json.loads(sys.argv.pop(1))
    # The fake is a Python program: the interpreter that runs the tests is its engine.
    os.environ.setdefault("ENGINEROOM_FORCE_BACKEND", "llama_cpp")
    os.environ["ENGINEROOM_ENGINE_PATH"] = sys.executable
    app(obj={"llama_cpp": FakeLauncher(knobs, serial=False)})


if __name__ == "__main__":
    guarded(main)
