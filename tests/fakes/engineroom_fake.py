"""The `engineroom` command with the fake engine in place of llama.cpp, for the library's tests.

    python -m tests.fakes.engineroom_fake '["--tps", "20"]' serve --tied --json ...

The first argument holds the fake's knobs; the rest is what `engineroom` takes. Everything but the
launcher is the real thing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from orchestrator.cli.main import app, guarded
from tests.fakes.launcher import FakeLauncher
from tests.fakes.serve_fake import fake_environment, means


def main() -> None:
    """Run one command."""
    knobs = json.loads(sys.argv.pop(1))
    fake_environment(Path(os.environ["ENGINEROOM_ENGINES_DIR"]))
    app(obj=means(FakeLauncher(knobs, serial=False)))


if __name__ == "__main__":
    guarded(main)
