"""The library over real llama.cpp with the demo model, and its page in the documents."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine_launchers.base import EngineName
from orchestrator import AdaptiveInferenceEngine, InferenceBackend
from orchestrator.engines.shelf import Engine
from orchestrator.errors import ContextLengthExceeded
from tests.harness import ROOT, SLACK, clean_env, processes_of

pytestmark = [pytest.mark.real, pytest.mark.slow]
GREEDY = [
    entry
    for entry in json.loads((ROOT / "tests/fixtures/demo_greedy.json").read_text())["Q4_K_M"]
    if entry["kind"] == "completion"
]


def test_the_answers_are_the_recorded_ones(
    tmp_path: Path, engines_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    engine = AdaptiveInferenceEngine(data_dir=tmp_path, engines_dir=engines_dir)
    plan = engine.load_model("demo", InferenceBackend.LLAMA_CPP, force_cpu=True)
    assert (plan.engine, plan.tier) == ("llama_cpp", "CPU_ONLY")

    async def stream(prompt: str, limit: int) -> str:
        pieces = engine.generate_stream(prompt, limit, do_sample=False)
        return "".join([piece async for piece in pieces])

    with engine:
        for entry in GREEDY:
            prompt, limit = entry["prompt"], entry["max_tokens"]
            result = engine.generate(prompt, limit, do_sample=False)
            assert (result.text, result.token_count, result.finish_reason) == (
                entry["text"], entry["tokens"], entry["finish_reason"],
            )  # fmt: skip
            assert asyncio.run(stream(prompt, limit)) == entry["text"]
        with pytest.raises(ContextLengthExceeded, match="context"):
            engine.generate("a word " * 5000)
    assert processes_of(str(tmp_path)) == []


@pytest.fixture
def pytorch(installed: Callable[[EngineName], Engine]) -> Engine:
    return installed("pytorch")


@pytest.mark.usefixtures("pytorch")
@pytest.mark.timeout(600)
def test_every_program_on_the_page_runs(tmp_path: Path, engines_dir: Path) -> None:
    page = (ROOT / "docs/how-to/library.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(programs) == 5
    env = clean_env(ENGINEROOM_DATA_DIR=str(tmp_path), ENGINEROOM_ENGINES_DIR=str(engines_dir))
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True,
            cwd=ROOT, env=env, timeout=120 * SLACK, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.strip()
        assert "invalid_config" not in done.stdout
    assert processes_of(str(tmp_path)) == []
    assert not list((tmp_path / "library").iterdir())
