"""What llama.cpp's server really takes and does on this machine, beside what the planner says.

    python bench/footprint.py [demo llama-1b tinyllama-1b mistral-7b] [--context 2048] [--json]

Models other than the demo are written with random weights (`tools/shape_gguf.py`) into a temporary
folder, which goes at the end, as do the servers. Each server is started with the planned command.
Read bandwidth and decoding are measured in turns, so that both meet the same neighbours; medians
of the `--rounds` least disturbed ones count. The memory is that of the server's processes after a
prompt that fills the context. `busy` is the share of the cores that others had meanwhile: above 0.1
the speeds say little, repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file

from engine_launchers.base import EnginePlan, Launcher, Listen
from engine_launchers.llama_cpp import VERSION, LlamaCppLauncher
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.hardware import bandwidth, probe
from orchestrator.models.gguf_spec import model_spec
from orchestrator.planning.planner import Wish, make_plan
from orchestrator.resources import default_data_dir, demo_dir
from orchestrator.runtimes.process import INHERITED
from orchestrator.tables import load_gpus, load_tiers
from tools.shape_gguf import SHAPES, write

_READY_S = 180
_ANSWER_S = 1800
_QUIET = 0.1  # share of the cores that others may have
_PATIENCE = 4  # times the rounds, while others work
_PROMPT = 512
_DECODED = 129
_HEAD = (
    "| model | context | RSS predicted, MiB | measured | ratio | tok/s predicted | measured | ratio"
    " | TTFT predicted, s | measured | read GB/s | busy |"
)
MODELS = ("demo", *SHAPES)


@dataclass(frozen=True)
class Footprint:
    """One model's figures: bytes, tokens per second, seconds; bandwidth in bytes per second."""

    model: str
    context: int
    predicted_rss: int
    measured_rss: int
    predicted_rate: float
    measured_rate: float
    predicted_ttft: float
    measured_ttft: float
    bandwidth: float
    busy: float


class Server:
    """A running llama.cpp server, asked over HTTP."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Open one call."""
        data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, kind)
        return urllib.request.urlopen(request, timeout=_ANSWER_S)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        with self.post("/extras/tokenize/count", {"input": text}) as answer:
            return int(json.load(answer)["count"])

    def stream(self, prompt: str, tokens: int) -> list[float]:
        """Seconds from the question to each piece of a greedy answer."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        began, times = time.perf_counter(), []
        with self.post("/v1/completions", body) as answer:
            for line in answer:
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
                    times.append(time.perf_counter() - began)
        return times

    def prompt(self, start: str, tokens: int) -> str:
        """A text of nearly `tokens` tokens, never more; `start` keeps it out of the cache."""
        unit = self.count(start + " a" * 64) - self.count(start)
        words = (tokens - self.count(start)) * 64 // unit
        while self.count(start + " a" * words) > tokens:
            words -= 1
        return start + " a" * words

    def memory(self) -> int:
        """Resident bytes of the process and its children."""
        whole = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in (whole, *whole.children(recursive=True)))

    def cpu_seconds(self) -> float:
        """Processor time that it has had."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def serving(plan: EnginePlan, python: Path, log: Path) -> Iterator[Server]:
    """The server that `plan` commands, ready; killed at the end. RuntimeError if it ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = Listen(port=free.getsockname()[1])
    spec = LlamaCppLauncher().command(plan, listen).with_engine(str(python))
    env = {name: os.environ[name] for name in INHERITED if name in os.environ} | spec.env
    with log.open("wb") as out:
        process = subprocess.Popen(
            spec.argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                urllib.request.urlopen(listen.base_url + "/docs", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: see {log}") from error
                time.sleep(0.1)
        yield Server(process, listen.base_url)
    finally:
        process.kill()  # a server in the middle of an answer would finish it first
        process.wait()


def planned(model: ModelSpec, context: int, hardware: HardwareProfile) -> EnginePlan:
    """What Engine Room would do with this model on this machine's processor."""
    wish = Wish(engine="llama_cpp", max_model_len=context)
    launcher: Launcher = LlamaCppLauncher()
    bare = hardware.model_copy(update={"gpus": (), "links": ()})
    return make_plan([model], bare, load_tiers(), {launcher.name: launcher}, wish, load_gpus())


def _others(server: Server) -> float:
    """Processor seconds since boot that went to others than `server`, the host's share included."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.steal) - server.cpu_seconds()


def engine_python() -> Path:
    """The interpreter of the installed engine."""
    folder = os.environ.get("ENGINEROOM_ENGINES_DIR")
    root = Path(folder) if folder else default_data_dir(os.environ) / "envs"
    return root / f"llama_cpp-{VERSION}" / "bin" / "python"


def measure(
    name: str, context: int, folder: Path, python: Path, rounds: int = 3, prompt: int = _PROMPT
) -> Footprint:
    """All figures of one model. Writes the model and the server's log into `folder`."""
    path = demo_dir() / "demo.Q4_K_M.gguf" if name == "demo" else folder / f"{name}.gguf"
    if name != "demo":
        write(SHAPES[name], path, name)
    hardware = probe()
    model = model_spec(path, name)
    plan = planned(model, context, hardware)
    cores = hardware.cpu_cores
    samples: list[tuple[float, float, float]] = []  # what others took, rate, bandwidth
    first: list[float] = []
    with serving(plan, python, folder / f"{name}.log") as server:
        server.stream("Hello", 4)
        while sum(busy < _QUIET for busy, _, _ in samples) < rounds > len(samples) // _PATIENCE:
            read_rate = bandwidth.measure(cores, hardware.ram_available).rate or 0
            before = _others(server)
            times = server.stream(f"{len(samples)} tell me a long story", _DECODED)
            busy = (_others(server) - before) / (times[-1] * cores)
            samples.append((busy, (len(times) - 1) / (times[-1] - times[0]), read_rate))
        for at in range(min(rounds, 2)):
            first.append(server.stream(server.prompt(f"{at} once", prompt), 2)[0])
        server.stream(server.prompt("all", context - 4), 3)
        held = server.memory()
    if name != "demo":
        path.unlink()
    samples = sorted(samples)[:rounds]  # the least disturbed
    busy, rate_seen, read = (statistics.median(column) for column in zip(*samples, strict=True))
    known = hardware.model_copy(update={"memory_bandwidth": int(read)})
    plan = planned(model, context, known)
    rate, ttft = plan.expected.tokens_per_second, plan.expected.ttft_seconds
    return Footprint(
        model=name,
        context=context,
        predicted_rss=next(part.total for part in plan.estimate if part.device == "ram"),
        measured_rss=held,
        predicted_rate=sum(rate) / 2 if rate else 0.0,
        measured_rate=rate_seen,
        predicted_ttft=sum(ttft) / 2 if ttft else 0.0,
        measured_ttft=min(first),
        bandwidth=read,
        busy=busy,
    )


def show(found: Footprint) -> str:
    """One row of the table."""
    mib = 2**20
    cells = (
        found.model,
        str(found.context),
        f"{found.predicted_rss / mib:.0f}",
        f"{found.measured_rss / mib:.0f}",
        f"{found.predicted_rss / found.measured_rss:.3f}",
        f"{found.predicted_rate:.1f}",
        f"{found.measured_rate:.1f}",
        f"{found.predicted_rate / found.measured_rate:.2f}",
        f"{found.predicted_ttft:.2f}",
        f"{found.measured_ttft:.2f}",
        f"{found.bandwidth / 1e9:.1f}",
        f"{found.busy:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Predicted and measured, side by side.")
    parser.add_argument("models", nargs="*", default=["demo", "llama-1b", "mistral-7b"])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in options.models:
        if name not in MODELS:
            parser.error(f"{name}: choose among {', '.join(MODELS)}")
    if not options.json:
        print(_HEAD)
        print("| --- |" + " --- |" * 11)
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, options.context, Path(folder), engine_python(), options.rounds)
        print(json.dumps(asdict(found)) if options.json else show(found), flush=True)


if __name__ == "__main__":
    main()
