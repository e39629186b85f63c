"""Compiles what every request passes through, by mypyc and a C compiler: `make compiled`.

The modules stay as they are and go on to work without it: a compiled one lies beside its source,
and Python takes it in its place. `orchestrator.compiled` tells which, and whether they are of the
sources that are there now. `--remove` undoes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from orchestrator.compiled import MANIFEST

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "compiled"
GROUP = "engineroom"
GATEWAY = (
    "admission", "answers", "asking", "board", "books", "buckets", "call", "connections",
    "crowd", "desk", "door", "doors", "engine_connection", "engine_pool", "entry", "exchange",
    "fairness", "framing", "guard", "job", "judging", "keyring", "manners", "orders",
    "outliers", "pace", "places", "quarantine", "quick", "request_ids", "retries", "routing",
    "shapes", "solo", "sse", "template", "turns", "weights", "witness",
)  # fmt: skip
MODULES = (
    *(f"orchestrator/gateway/{name}.py" for name in GATEWAY),
    "orchestrator/observability/key_metrics.py",
    "orchestrator/observability/plain.py",
)
_SETUP = """
from mypyc.build import mypycify
from setuptools import setup

paths = {paths!r}
setup(ext_modules=mypycify(
    ["--config-file", {config!r}, *paths], opt_level="2", debug_level="0", group_name={group!r}
))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.compiled", description=__doc__)
    parser.add_argument("--remove", action="store_true", help="remove what was compiled")
    given = parser.parse_args()
    remove()
    if not given.remove:
        build()
        sys.stdout.write(f"{len(MODULES)} modules of the gateway are compiled\n")
    return 0


def remove() -> None:
    """Leave only sources."""
    MANIFEST.unlink(missing_ok=True)
    for path in (*ROOT.glob("orchestrator/**/*.so"), *ROOT.glob(f"{GROUP}__mypyc*.so")):
        path.unlink()


def build() -> None:
    """Compile in a copy, then bring what was made beside the sources, the manifest last."""
    for package in ("orchestrator", "engine_launchers"):
        shutil.rmtree(WORK / package, ignore_errors=True)
        shutil.copytree(
            ROOT / package, WORK / package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    config = str(ROOT / "pyproject.toml")
    (WORK / "setup.py").write_text(_SETUP.format(paths=list(MODULES), config=config, group=GROUP))
    argv = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    subprocess.run(argv, cwd=WORK, check=True)
    # What all of them are in comes first; each is there whole or not at all, whoever starts now.
    for made in (*WORK.glob(f"{GROUP}__mypyc*.so"), *WORK.glob("orchestrator/**/*.so")):
        there = ROOT / made.relative_to(WORK)
        shutil.copy2(made, there.with_suffix(".new"))
        os.replace(there.with_suffix(".new"), there)
    hashes = {path: hashlib.sha256((WORK / path).read_bytes()).hexdigest() for path in MODULES}
    MANIFEST.write_text(json.dumps({"sources": hashes}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
