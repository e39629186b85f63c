"""Serve the demo model, run `engineroom bench` against it with the given flags, and stop it.

make bench ARGS="--users 4 --requests 200 --html report.html"
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from bench.first_token import start, stop


def main() -> int:
    """The exit code of the benchmark; flags are passed on as they are."""
    with tempfile.TemporaryDirectory() as data:
        server, ready, _, _ = start(data)
        try:
            command = [sys.executable, "-m", "orchestrator", "bench", ready["gateway"]]
            return subprocess.run([*command, *sys.argv[1:]], check=False).returncode
        finally:
            stop(server)


if __name__ == "__main__":
    sys.exit(main())
