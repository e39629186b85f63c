"""`python -m bench.planner`: the targets over the published rows, and files of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.planner import truth
from bench.planner.__main__ import DATA, TARGETS, p95, summary
from bench.planner.measure import Judged, judge
from bench.planner.names import Facts, key
from orchestrator.planning.gpus import parse_gpus
from orchestrator.resources import config_path
from tests.plans import catalog

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    known = {name: catalog().variants(name) for name in catalog().names()}
    facts = Facts(truth.read_jsonl(DATA / "models.jsonl"), known)
    table = parse_gpus(yaml.safe_load(config_path("gpus.yaml").read_text()))
    cards = truth.Cards(truth.read_jsonl(DATA / "gpus.jsonl"), table)
    rows = truth.read_jsonl(DATA / "memory.jsonl")
    return [each for row in rows if (each := judge(row, facts, cards))]


@pytest.mark.parametrize(("engine", "figure"), TARGETS)
def test_every_median_meets_its_target(judged: list[Judged], engine: str, figure: str) -> None:
    cell = summary(judged)[engine]["errors"][figure]
    assert cell["rows"] >= 5
    assert cell["median"] <= TARGETS[engine, figure]


def test_failures_are_refused_and_working_rows_are_not(judged: list[Judged]) -> None:
    verdicts = summary(judged)["all"]["verdicts"]
    assert verdicts["failed_rows"] >= 40
    assert verdicts["failed_refused_pct"] >= 95
    assert verdicts["working_rows"] >= 200
    assert verdicts["working_refused_pct"] <= 3


def test_what_cannot_be_judged_is_counted(judged: list[Judged]) -> None:
    result = summary(judged)
    for engine in ("vllm", "llama.cpp"):
        rows = [row for row in judged if row.engine == engine and row.tier in {"A", "B"}]
        v = result[engine]["verdicts"]
        counted = ("failed_rows", "working_rows", "undecided_failed", "undecided_working",
                   "not_of_memory")  # fmt: skip
        assert sum(v[name] for name in counted) == result[engine]["rows"] == len(rows)
    assert all(row.why for row in judged if row.refused is None)
    one = Judged("x", "vllm", "A", failed=True, why="card not known")
    assert summary([one])["vllm"]["verdicts"]["undecided_failed"] == 1
    assert summary([one])["vllm"]["verdicts"]["failed_refused_pct"] is None
    assert summary([Judged("y", "vllm", "C", failed=True, refused=True)])["all"]["rows"] == 0


def test_p95() -> None:
    assert p95([1.0]) == 1.0
    assert p95(list(range(1, 101))) == 95
    assert p95(list(range(1, 21))) == 19


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama 3.1 8b"),
        ("Meta-Llama-3-8B (8B-v3/ggml-model-Q4_K_M.gguf)", "llama 3 8b"),
        ("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "llama 3.2 3b"),
        ("mixtral-8x7b-instruct-v0.1.Q5_K_M.gguf", "mixtral 8x7b"),
        ("Qwen/Qwen3-32B", "qwen 3 32b"),
        ("phi-4-q4.gguf", "phi 4"),
    ],
)
def test_names_of_one_model_have_one_key(written: str, meant: str) -> None:
    assert key(written) == meant


def line(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_ones_own_through_the_command(tmp_path: Path) -> None:
    rows = {row["id"]: row for row in truth.read_jsonl(DATA / "memory.jsonl")}
    chosen = line(tmp_path / "rows", rows["llmd-l31-8b"], rows["llmd-l33-70b-fp8-tp1"])
    named = [row for row in truth.read_jsonl(DATA / "models.jsonl") if "Llama-3" in row["id"]]
    cards = truth.read_jsonl(DATA / "gpus.jsonl")[:3]
    files = ["--rows", str(chosen), "--models", str(line(tmp_path / "models", *named)),
             "--gpus", str(line(tmp_path / "gpus", *cards))]  # fmt: skip
    command = [sys.executable, "-m", "bench.planner", *files]
    done = subprocess.run(
        [*command, "--json", "--detail"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    first, second, last = done.stdout.splitlines()
    assert first.startswith("llmd-l31-8b [A] accepted/worked")
    assert second.startswith("llmd-l33-70b-fp8-tp1 [A] refused/failed")
    verdicts = json.loads(last)["all"]["verdicts"]
    assert (verdicts["failed_refused"], verdicts["working_refused"]) == (1, 0)
    assert json.loads(last)["vllm"]["rows"] == 2
