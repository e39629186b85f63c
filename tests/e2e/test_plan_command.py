"""`engineroom plan` and `probe` as people and scripts call them: real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_errors_people_see import engineroom, sentence
from tests.plans import MISTRAL

pytestmark = [pytest.mark.real, pytest.mark.slow]  # real processes, some seconds each


def as_json(tmp_path: Path, *words: str) -> Any:
    return json.loads(engineroom(tmp_path, "plan", *words, "--json", expect=0).stdout)


def test_a_plan_for_two_cards_that_are_not_here(tmp_path: Path) -> None:
    plan = as_json(tmp_path, MISTRAL, "--gpu", "RTX 4090:2")
    assert (plan["id"], plan["tier"], plan["engine"]) == ("vllm-fp16-tp2", "MULTI_GPU", "vllm")
    argv = plan["command"]["argv"]
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"
    assert plan["command"]["env"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert [part["device"] for part in plan["estimate"]] == ["gpu:0", "gpu:1"]
    assert plan["rejected"]
    assert plan["ladder"]


def test_a_card_of_which_only_the_size_is_known(tmp_path: Path) -> None:
    plan = as_json(tmp_path, MISTRAL, "--vram-gb", "24")
    assert plan["tier"] == "PROSUMER"
    assert plan["expected"]["tokens_per_second"] is None
    assert "no published figures" in plan["expected"]["source"]


def test_what_probe_prints_is_a_machine_to_plan_for(tmp_path: Path) -> None:
    probed = engineroom(tmp_path, "probe", "--json", expect=0).stdout
    file = tmp_path / "machine.json"
    file.write_text(probed)
    plan = as_json(tmp_path, "demo", "--hardware", str(file))
    assert plan["tuning"]["threads"] == json.loads(probed)["cpu_cores"]
    twice = as_json(tmp_path, "demo", "--hardware", str(file), "--cpus", "3", "--ram-gb", "12")
    assert twice["tuning"]["threads"] == 3
    assert twice["estimate"][-1]["capacity"] == 12 * 2**30


def test_the_catalog_ranked(tmp_path: Path) -> None:
    lines = as_json(tmp_path, "--all", "--gpu", "RTX 4060")
    assert len(lines) > 70
    names = [json.dumps(line) for line in lines]
    assert any(MISTRAL in name for name in names)
    text = engineroom(tmp_path, "plan", "--all", "--gpu", "RTX 4060", expect=0).stdout
    assert MISTRAL in text


def test_explain_shows_refusals_and_what_comes_next(tmp_path: Path) -> None:
    words = ("plan", MISTRAL, "--gpu", "RTX 4080", "--explain")
    text = " ".join(engineroom(tmp_path, *words, expect=0).stdout.split())
    assert "needs 14.31 GiB" in text
    assert "32 -> 16" in text


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--gpu", "RTX 4091"], 78, "did you mean"),
        (["--gpu", "none", "--vram-gb", "8"], 78, "contradict each other"),
        (["--hardware", "/no/machine.json"], 78, "/no/machine.json"),
        (["--gpu", "RTX 4060", "--context", "32768", "--force-backend", "vllm"], 69,
         "18128 tokens, 32768 wanted"),
        (["--gpu", "RTX 4090", "--gpu-memory-utilization", "1"], 69, "0.95 would do"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_sentence(
    tmp_path: Path, words: list[str], code: int, expected: str
) -> None:
    assert expected in sentence(engineroom(tmp_path, "plan", MISTRAL, *words, expect=code))


@pytest.mark.parametrize("text", ["{", '{"cpu_cores": 0}'])
def test_a_file_that_is_no_machine(tmp_path: Path, text: str) -> None:
    file = tmp_path / "machine.json"
    file.write_text(text)
    said = sentence(engineroom(tmp_path, "plan", "demo", "--hardware", str(file), expect=78))
    assert "engineroom probe --json" in said


def test_a_model_and_all_contradict_each_other(tmp_path: Path) -> None:
    done = engineroom(tmp_path, "plan", MISTRAL, "--all", expect=2)
    assert "not both" in done.stderr
