"""Our plan beside other ways to run the same GGUF file, in turns: tokens/s, streams, start, memory.

    python -m tools.shape_gguf mistral-7b m7.gguf
    python bench/engines.py m7.gguf [--rounds 3] [--tokens 48] [--context 2048] [--json]

Each round starts every contender in turn, and each round another of them first, so that a machine
whose speed swings, or that has to read the file first, treats all alike; figures are medians.
Contenders: the command line of Engine Room's plan for llama-server, the same for llama_cpp.server,
both servers with their own defaults, and llama-server with the settings that Ollama gives its
runner (one slot, context 4096, batch 512, mmap). The last two rows start our plan once by hand and
once through the supervisor, until its first token.
Needs both engines installed (`engineroom engines install llama_server`, `... llama_cpp`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.first_token import free_port
from engine_launchers import load_launcher
from engine_launchers.base import EngineName, EnginePlan, Listen
from orchestrator.advice import Advisor
from orchestrator.engines.shelf import Engine, Shelf
from orchestrator.hardware import probe
from orchestrator.models.gguf_spec import model_spec
from orchestrator.settings import load_settings

PROMPT = "the quick brown fox number {}"  # short, and another for each stream: prefill is no part
START_S = 300.0


@dataclass
class Contender:
    """One way to run the file, and what was measured of it in each round."""

    name: str
    command: Callable[[int], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    ready: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    four: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)


def stream(port: int, model: str, tokens: int, number: int = 0) -> tuple[int, float, float]:
    """Tokens of one greedy stream, and when the first and the last came (perf_counter)."""
    body = {
        "model": model,
        "prompt": PROMPT.format(number),
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"2": -100},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    times: list[float] = []
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                value = json.loads(line[6:])
                if any(choice.get("text") for choice in value["choices"]):
                    times.append(time.perf_counter())
    return len(times), times[0], times[-1]


def wait_first_token(port: int, model: str, alive: Callable[[], bool]) -> float:
    """When a first token came (perf_counter)."""
    end = time.monotonic() + START_S
    pause = threading.Event()
    while time.monotonic() < end and alive():
        try:
            return stream(port, model, 1)[1]
        except (urllib.error.URLError, OSError):
            pause.wait(0.01)
    raise SystemExit("an engine did not start")


def measure(contender: Contender, model: str, tokens: int) -> None:
    """One round of one contender."""
    port = free_port()
    began = time.perf_counter()
    process = subprocess.Popen(
        contender.command(port),
        env={**os.environ, **contender.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        first = wait_first_token(port, model, lambda: process.poll() is None)
        contender.ready.append(first - began)
        count, start, last = stream(port, model, tokens)
        contender.one.append((count - 1) / (last - start))
        contender.four.append(together(port, model, tokens, 4))
        contender.resident.append(psutil.Process(process.pid).memory_info().rss / 2**30)
    finally:
        process.kill()
        process.wait()


def together(port: int, model: str, tokens: int, streams: int) -> float:
    """Tokens per second of several streams together, from their last first token on."""
    done: list[tuple[int, float, float]] = []
    threads = [
        threading.Thread(target=lambda n=n: done.append(stream(port, model, tokens, n)))
        for n in range(1, streams + 1)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if max(first for _, first, _ in done) >= min(last for _, _, last in done):
        # one after another: no two ran together
        return sum(n for n, _, _ in done) / (max(x[2] for x in done) - min(x[1] for x in done))
    return sum((count - 1) / (last - first) for count, first, last in done)


def supervised(file: Path, context: int, model: str) -> float:
    """Seconds from the engine's launch to its readiness, as the supervisor's metric has it."""
    with tempfile.TemporaryDirectory() as data:
        settings = load_settings({})
        command = [sys.executable, "-m", "orchestrator", "serve", str(file), "--json"]
        command += ["--engine", "llama_server", "--context", str(context), "--data-dir", data]
        command += ["--port", str(free_port()), "--admin-port", str(free_port())]
        env = {**os.environ, "ENGINEROOM_ENGINES_DIR": str(settings.engines)}
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            token = Path(ready["token_file"]).read_text().strip()
            ask = urllib.request.Request(
                ready["admin"] + "/metrics", headers={"authorization": f"Bearer {token}"}
            )
            with urllib.request.urlopen(ask) as answer:
                text = answer.read().decode()
        finally:
            process.terminate()
            process.wait()
    name = f'engineroom_engine_start_seconds_sum{{replica="{model}-0"}}'
    return next(float(x.split()[-1]) for x in text.splitlines() if x.startswith(name))


def contenders(file: Path, context: int) -> tuple[list[Contender], EnginePlan, float]:
    """Everybody who takes part, our plan, and this machine's measured bandwidth in bytes/s."""
    settings = load_settings({})
    hardware = probe(bandwidth_cache=settings.cache)
    shelf = Shelf(settings.engines, os.environ, cache=settings.cache)
    spec = model_spec(file, file.stem)

    def program(name: EngineName) -> str:
        found = shelf.find(name, hardware)
        if not isinstance(found, Engine):
            raise SystemExit(f"{name} is missing: engineroom engines install {name}")
        return found.program

    def ours(name: EngineName) -> tuple[Contender, EnginePlan]:
        pins = {"force_backend": name, "context": context}
        plan = Advisor(hardware, load_settings(pins, {})).plan((spec,))
        launcher = load_launcher(name)

        def command(port: int) -> list[str]:
            return list(launcher.command(plan, Listen(port=port)).with_engine(program(name)).argv)

        env = launcher.command(plan, Listen(port=1)).env
        return Contender(f"our plan, {name}", command, env), plan

    native = [program("llama_server"), "-m", str(file)]
    python = [program("llama_cpp"), "-m", "llama_cpp.server", "--model", str(file)]
    mine, plan = ours("llama_server")
    serial, _ = ours("llama_cpp")
    cores = str(psutil.cpu_count(logical=False) or 1)
    ollama = ["-c", "4096", "-np", "1", "-b", "512", "-t", cores, "--no-warmup"]
    others = {
        "llama-server, its defaults": native,
        "llama_cpp.server, its defaults": python,
        "llama-server as Ollama sets it": [*native, *ollama],
    }
    everybody = [mine, serial, *(Contender(name, _on(argv)) for name, argv in others.items())]
    return everybody, plan, float(hardware.memory_bandwidth or 0)


def _warm(file: Path) -> None:
    """Read the file once: the first contender shall not be the one that waits for the disk."""
    with file.open("rb") as source:
        while source.read(1 << 24):
            pass


def _on(argv: list[str]) -> Callable[[int], list[str]]:
    return lambda port: [*argv, "--port", str(port)]


def report(rows: list[dict[str, Any]], ratios: dict[str, float]) -> None:
    """The table for people."""
    for row in rows:
        sys.stdout.write(
            f"{row['name']:32} {row['one']:8.2f} tok/s  4 streams {row['four']:8.2f}  "
            f"first token after {row['ready']:6.2f} s  RSS {row['resident']:5.2f} GiB\n"
        )
    for name, value in ratios.items():
        sys.stdout.write(f"{name:60} {value:.3f}\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument(
        "--only", default="", help="contenders with one of these in their names: a|b"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    file = options.file.absolute()
    everybody, plan, bandwidth = contenders(file, options.context)
    wanted = options.only.split("|")
    everybody = [each for each in everybody if any(word in each.name for word in wanted)]
    starts: list[float] = []
    _warm(file)
    for number in range(options.rounds):
        first = number % len(everybody)
        for each in (*everybody[first:], *everybody[:first]):
            measure(each, plan.model.id, options.tokens)
        starts.append(supervised(file, options.context, plan.model.id))
    rows = [
        {"name": each.name, **{k: statistics.median(getattr(each, k)) for k in _FIGURES}}
        for each in everybody
    ]
    others = [row for row in rows if not row["name"].startswith("our")] or rows
    best = max(row["one"] for row in others)
    mine = rows[0]
    ratios = {
        "one stream, ours to the best of the others": mine["one"] / best,
        "four streams to one, ours": mine["four"] / mine["one"],
        "four streams, ours to the best of the others": mine["four"]
        / max(row["four"] for row in others),
        "share of the measured memory bandwidth, one stream": mine["one"]
        * plan.model.weight_bytes
        / bandwidth
        if bandwidth
        else 0.0,
        "launch to first token, by hand, s": mine["ready"],
        "launch to ready, supervised, s": statistics.median(starts),
    }
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows, "ratios": ratios}) + "\n")
    else:
        report(rows, ratios)


_FIGURES = ("one", "four", "ready", "resident")

if __name__ == "__main__":
    main()
