"""Do our figures agree with `vllm bench serve` on the same server? In turns, medians of rounds.

    .venv/bin/python -m bench.agreement --vllm PATH/bin/vllm [--url URL --model NAME] [--rounds 5]

Without --url both measure the fake engine at 50 tokens/s a stream, 0.2 s before the first token,
whose true figures are known. Prints each figure of both and their ratio; exit code 1 where a median
differs by more than 5 %. vLLM's client sends random tokens of --tokenizer (the demo model's), ours
words; both ask for --output-tokens and go on past the end of text where the server can.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "output tokens/s": ("output_tokens_per_s", "output_throughput", 1.0),
    "requests/s": ("requests_per_s", "request_throughput", 1.0),
    "TTFT p50, s": ("ttft_s", "median_ttft_ms", 1e-3),
    "TPOT p50, s": ("tpot_s", "median_tpot_ms", 1e-3),
    "ITL p50, s": ("itl_s", "median_itl_ms", 1e-3),
    "end to end p50, s": ("e2e_s", "median_e2el_ms", 1e-3),
}
TOLERANCE = 0.05


def ours(args: argparse.Namespace, url: str, model: str, seed: int) -> dict[str, float]:
    """Our figures of one round."""
    command = [sys.executable, "-m", "orchestrator", "bench", url, "--model", model, "--json", "-"]
    command += ["--users", str(args.users), "--requests", str(args.requests), "--seed", str(seed)]
    command += ["--prompt-tokens", str(args.prompt_tokens), "--warmup", str(args.users)]
    command += ["--output-tokens", str(args.output_tokens)]
    command += ["--field", "ignore_eos=true"] if args.ignore_eos else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    found = json.loads(done.stdout)["targets"][0]["figures"]
    assert found["requests"]["ok"] == args.requests, found["requests"]

    def value(name: str) -> float:
        return float(found[name]["p50"] if name.endswith("_s") and name[-5:] != "per_s"
                     else found[name])  # fmt: skip

    return {label: value(name) for label, (name, _, _) in NAMES.items()}


def theirs(args: argparse.Namespace, url: str, model: str, seed: int) -> dict[str, float]:
    """The figures of vLLM's client for one round."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(args.vllm), "bench", "serve", "--backend", "openai", "--base-url", url]
        command += ["--model", model, "--tokenizer", str(args.tokenizer), "--disable-tqdm"]
        command += ["--dataset-name", "random", "--random-input-len", str(args.prompt_tokens)]
        command += ["--random-output-len", str(args.output_tokens), "--seed", str(seed)]
        command += ["--num-prompts", str(args.requests), "--max-concurrency", str(args.users)]
        command += ["--num-warmups", str(args.users), "--temperature", "0"]
        command += ["--percentile-metrics", "ttft,tpot,itl,e2el"]
        command += ["--ignore-eos"] if args.ignore_eos else []
        command += ["--save-result", "--result-dir", folder, "--result-filename", "r.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found: dict[str, Any] = json.loads((Path(folder) / "r.json").read_text())
    assert found["completed"] == args.requests, found["completed"]
    return {label: float(found[name]) * unit for label, (_, name, unit) in NAMES.items()}


def fake_engine() -> tuple[subprocess.Popen[str], str]:
    """The fake engine at a known pace, and its address."""
    command = [sys.executable, "-u", str(ROOT / "tests/fakes/engine.py"), "--port", "0"]
    command += ["--tps", "50", "--prefill-s", "0.2", "--usage-in-stream"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return process, line.split()[-1]
    raise SystemExit("the fake engine did not start")


def main() -> int:
    """Rounds in turns, another client first each time; the table; the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", type=Path, required=True, help="the vllm command")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "orchestrator/models/demo")
    parser.add_argument("--url")
    parser.add_argument("--model", default="fake")
    parser.add_argument("--ignore-eos", action="store_true")
    for name, default in (("rounds", 5), ("users", 10), ("requests", 100),
                          ("prompt-tokens", 64), ("output-tokens", 64)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    process, url = (None, args.url) if args.url else fake_engine()
    rows: dict[str, list[tuple[float, float]]] = {label: [] for label in NAMES}
    try:
        for number in range(args.rounds):
            order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
            made = {each: each(args, url, args.model, number + 1) for each in order}
            for label in NAMES:
                rows[label].append((made[ours][label], made[theirs][label]))
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    finally:
        if process is not None:
            process.terminate()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    agreed = True
    print(f"{'':20} {'ours':>10} {'vLLM':>10} {'ratio':>7}   rounds")
    for label, pairs in rows.items():
        a, b = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        agreed &= abs(a / b - 1) <= TOLERANCE
        each = " ".join(f"{x / y:.3f}" for x, y in pairs)
        print(f"{label:20} {a:10.4f} {b:10.4f} {a / b:7.3f}   {each}")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
