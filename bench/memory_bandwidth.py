"""The probe's memory bandwidth beside a read kernel in C, taken in turns.

    python bench/memory_bandwidth.py --threads 1 2 --rounds 9

Needs a C compiler and 256 MiB of free memory per thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator.hardware.bandwidth import measure

SOURCE = Path(__file__).with_name("read_bandwidth.c")


def compare(program: Path, threads: int, rounds: int) -> str:
    """One line: best and median of both in GB/s, and their ratio. Disturbed rounds do not count."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds * 4):
        found = measure(threads, psutil.virtual_memory().available)
        text = subprocess.run([program, str(threads)], check=True, capture_output=True).stdout
        if found.rate and found.quiet:
            ours.append(found.rate / 1e9)
            theirs.append(float(text) / 1e9)
        if len(ours) == rounds:
            break
    if not ours:
        return f"{threads} threads: no undisturbed round"
    lines = (
        f"{name} C {x:.1f} probe {y:.1f} ratio {y / x:.2f}"
        for name, x, y in (
            ("best", max(theirs), max(ours)),
            ("median", median(theirs), median(ours)),
        )
    )
    return f"{threads} threads, {len(ours)} rounds: " + ", ".join(lines)


def main() -> None:
    """Compile the yardstick, compare for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, psutil.cpu_count(False) or 1])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "read"
        flags = ["-O3", "-march=native", "-pthread"]
        subprocess.run(["cc", *flags, "-o", program, SOURCE], check=True)
        for threads in options.threads:
            sys.stdout.write(compare(program, threads, options.rounds) + "\n")


if __name__ == "__main__":
    main()
