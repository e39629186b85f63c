"""What the planner promises of the real engine's memory and speed, against the engine itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.footprint import measure

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("model", "context"), [("demo", 2048), ("llama-1b", 512)])
def test_memory_and_speed_are_the_planned_ones(
    tmp_path: Path, engines_dir: Path, model: str, context: int
) -> None:
    python = next(engines_dir.glob("llama_cpp-*/bin/python"))
    found = measure(model, context, tmp_path, python, rounds=1, prompt=min(512, context - 64))
    assert found.predicted_rss == pytest.approx(found.measured_rss, rel=0.05)
    if found.busy <= 0.1:  # with others on the cores a speed says nothing
        assert 0.4 < found.predicted_rate / found.measured_rate < 2.5
