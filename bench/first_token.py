"""How long from `engineroom serve` to the first token, and what the gateway adds to a stream.

    .venv/bin/python bench/first_token.py [--starts 5] [--requests 20]

Starts the server on a data directory of its own (the engine is the installed one), asks for the
first token of a greedy stream, and stops it again. On the last start it streams alternately through
the gateway and straight from the engine, the same prompt, and prints medians and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

PROMPT = "Tell me a long story about the shop."


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stream(url: str, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds to the first event, and to the end, of one streamed call."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    began, first = time.perf_counter(), 0.0
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data: ") and not first:
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def start(data: str) -> tuple[subprocess.Popen[str], dict[str, Any], float, float]:
    """Start a server; its process, its ready line, seconds to that and to the first token."""
    engines = os.environ.get("ENGINEROOM_ENGINES_DIR") or str(
        Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "engineroom/envs"
    )
    env = {**os.environ, "ENGINEROOM_ENGINES_DIR": engines}
    began = time.perf_counter()
    command = [sys.executable, "-m", "orchestrator", "serve", "--json", "--data-dir", data]
    command += ["--port", str(free_port()), "--admin-port", str(free_port())]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    seconds = time.perf_counter() - began
    body = {"prompt": PROMPT, "max_new_tokens": 1, "do_sample": False}
    stream(ready["gateway"] + "/generate_stream", body)
    return process, ready, seconds, time.perf_counter() - began


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM and wait."""
    process.terminate()
    process.wait(60)
    if process.stdout is not None:
        process.stdout.close()


def show(name: str, values: list[float], unit: str = "s") -> None:
    """One row: minimum, median, maximum."""
    low, mid, high = min(values), statistics.median(values), max(values)
    print(f"{name:34} min {low:8.4f}  median {mid:8.4f}  max {high:8.4f} {unit}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20)
    options = parser.parse_args()
    ready_s, first_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.starts + 1):
            process, ready, to_ready, to_first = start(folder)
            if number > 0:  # the first start warms caches
                ready_s.append(to_ready)
                first_s.append(to_first)
            if number < options.starts:
                stop(process)
        show("start to ready", ready_s)
        show("start to first token", first_s)
        token = (Path(folder) / "admin.token").read_text().strip()
        request = urllib.request.Request(
            ready["admin"] + "/admin/engines/demo-0", headers={"authorization": f"Bearer {token}"}
        )
        engine = json.load(urllib.request.urlopen(request))["url"]
        ours: list[tuple[float, float]] = []
        direct: list[tuple[float, float]] = []
        body = {"model": "demo", "prompt": PROMPT, "temperature": 0, "stream": True}
        for _ in range(options.requests):
            ours.append(stream(ready["gateway"] + "/v1/completions", {**body, "max_tokens": 100}))
            direct.append(stream(engine + "/v1/completions", {**body, "max_tokens": 100}))
        stop(process)
    for name, index in (("first event", 0), ("whole stream of 100 tokens", 1)):
        show(f"{name}, gateway", [pair[index] for pair in ours])
        show(f"{name}, engine", [pair[index] for pair in direct])
        pairs = zip(ours, direct, strict=True)
        show(f"{name}, ratio", [a[index] / b[index] for a, b in pairs], "x")


if __name__ == "__main__":
    main()
