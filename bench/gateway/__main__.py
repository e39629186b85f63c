"""Rounds A B C, A B C over the same mock engine; medians, and ratios within each round.

The mock and the load client are one program of their own, named by GWBENCH. Every target is started
once, pinned to one processor, and stopped (SIGSTOP) while it is not its turn; mock and client share
another. CPU per unit is the figure to trust; rates and tails only on a machine that does nothing
else, see `foreign`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.gateway.targets import Target, targets
from bench.gateway.workloads import WORKLOADS, Workload
from orchestrator.settings import load_settings

SHOWN = {  # of the client's line: column, and what it is divided by
    "cpu us": ("cpu_us_per_unit", 1.0), "per s": ("rps", 1.0), "p50 us": ("lat_p50_us", 1.0),
    "p99 us": ("lat_p99_us", 1.0), "ttft us": ("ttft_p50_us", 1.0), "MB": ("rss_max_mb", 1.0),
    "foreign %": ("foreign_cpu_pct", 1.0),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--workloads", default="N1,N32,N256,P,P10,G32,GP10")
    parser.add_argument("--targets", default="", help="only these, by name")
    parser.add_argument("--port", type=int, default=19_000)
    parser.add_argument("--json", type=Path, help="write every line here")
    given = parser.parse_args()
    program = os.environ.get("GWBENCH", "")
    if not program:
        sys.stderr.write("set GWBENCH to the program gwbench (mock engine and load client)\n")
        return 78
    chosen = [WORKLOADS[name] for name in given.workloads.split(",")]
    peers = load_settings({}, os.environ).data / "bench" / "peers"
    lines: list[dict[str, Any]] = []
    with ExitStack() as stack:
        mock = stack.enter_context(running((program, "mock", "--port", str(given.port)), cpu=1))
        only = {name for name in given.targets.split(",") if name}
        rivals = targets(given.port, given.port + 1, peers, only)
        started = {each: stack.enter_context(running(each.argv, cpu=0)) for each in rivals}
        for target, process in started.items():
            wait_for(target.port)
            process.send_signal(signal.SIGSTOP)
        for number in range(given.rounds):
            for workload in chosen:
                for target, process in started.items():
                    if workload.kind == "generate" and not target.generates:
                        continue
                    line = measured(program, target, process, mock, workload, given.seconds)
                    lines.append({"round": number, **line})
                    if given.json is not None:
                        given.json.write_text("\n".join(map(json.dumps, lines)) + "\n")
    sys.stdout.write(report(lines))
    return 1 if any(line["errors"] for line in lines) else 0


@contextmanager
def running(argv: tuple[str, ...], cpu: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program pinned to a processor, ended at the end."""
    process = subprocess.Popen(
        ("taskset", "-c", str(cpu % (os.cpu_count() or 1)), *argv), stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    """Until something answers there, whatever it says."""
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nothing answers on port {port}")


def measured(
    program: str,
    target: Target,
    process: subprocess.Popen[bytes],
    mock: subprocess.Popen[bytes],
    workload: Workload,
    seconds: float,
) -> dict[str, Any]:
    """One line of the client, with the target awake for as long."""
    pids = ("--pid", str(process.pid), "--mock-pid", str(mock.pid))
    argv = ("taskset", "-c", str(1 % (os.cpu_count() or 1)), program, "load", "--port",
            str(target.port), *pids, *workload.flags(seconds))  # fmt: skip
    process.send_signal(signal.SIGCONT)
    try:
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    finally:
        process.send_signal(signal.SIGSTOP)
    return {"target": target.name, "workload": workload.name, **json.loads(said)}


def report(lines: list[dict[str, Any]]) -> str:
    """A table for each workload: medians, and CPU of ours by theirs, round by round."""
    out: list[str] = []
    for workload in dict.fromkeys(line["workload"] for line in lines):
        rows = [line for line in lines if line["workload"] == workload]
        unit = WORKLOADS[workload].unit
        out += [f"\n{workload} (cpu us per {unit})"]
        out += ["target".ljust(16) + "".join(name.rjust(12) for name in SHOWN) + "  ours / it"]
        ours = {line["round"]: line for line in rows if line["target"] == "ours"}
        for name in dict.fromkeys(line["target"] for line in rows):
            theirs = [line for line in rows if line["target"] == name]
            shown = [
                f"{statistics.median(line[key] for line in theirs) / by:.1f}".rjust(12)
                for key, by in SHOWN.values()
            ]
            ratios = [
                ours[line["round"]]["cpu_us_per_unit"] / line["cpu_us_per_unit"]
                for line in theirs
                if line["round"] in ours and line["cpu_us_per_unit"]
            ]
            ratio = ""
            if ratios and name != "ours":
                ratio = f"  {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            out.append(name.ljust(16) + "".join(shown) + ratio)
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
