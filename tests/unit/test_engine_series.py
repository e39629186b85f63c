"""What real engines said, in our words; and what makes no sense is left out."""

from __future__ import annotations

import time
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from engine_launchers.llama_server import LlamaServerLauncher
from engine_launchers.pytorch import PyTorchLauncher
from engine_launchers.series import VOCABULARY, SeriesRule
from engine_launchers.vllm import VllmLauncher
from orchestrator.observability.engine_metrics import EngineMetrics, Figures, Told
from orchestrator.supervision.exposition import rows, values
from orchestrator.supervision.normalizing import normalize

RECORDED = Path(__file__).parents[1] / "fixtures" / "metrics"
LAUNCHERS = {
    str(each.name): each for each in (VllmLauncher(), LlamaServerLauncher(), PyTorchLauncher())
}


def recorded(engine: str) -> Figures:
    """A canary and three requests: 24 tokens of prompts read, 37 written."""
    text = (RECORDED / f"{engine}.txt").read_text()
    return normalize(text, LAUNCHERS[engine].watch.series)


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_every_rule_finds_its_series_in_what_the_real_engine_said(engine: str) -> None:
    figures = recorded(engine)
    expected = {rule.ours for rule in LAUNCHERS[engine].watch.series}
    assert {*figures.numbers, *figures.histograms} == expected
    assert figures.numbers["prompt_tokens_total"] == {"": 24}
    assert figures.numbers["generated_tokens_total"] == {"": 37}
    assert figures.numbers["requests_running"] == {"": 0}
    assert figures.numbers["steps_total"][""] >= 37


@pytest.mark.parametrize("engine", ["vllm", "pytorch"])
def test_endings_and_histograms(engine: str) -> None:
    figures = recorded(engine)
    assert figures.numbers["requests_total"]["length"] == 4
    first = figures.histograms["ttft_seconds"]
    assert first.upto[-1] == (inf, 4)
    assert 0 < first.total < 10


def test_the_registry_shows_them_with_model_engine_and_replica() -> None:
    registry = CollectorRegistry()
    told = [Told("demo", name, f"demo-{at}", recorded(name)) for at, name in enumerate(LAUNCHERS)]
    EngineMetrics(registry, lambda: told)
    lines = generate_latest(registry).decode().splitlines()
    labels = 'engine="vllm",model="demo",replica="demo-0"'
    assert f"engineroom_engine_generated_tokens_total{{{labels}}} 37.0" in lines
    ended = (
        f"engineroom_engine_requests_total{{{labels.replace('replica', 'reason=REASON,replica')}"
    )
    for reason, count in {"stop": 0, "length": 4, "cancelled": 0, "failed": 0, "other": 0}.items():
        assert ended.replace("REASON", f'"{reason}"') + f"}} {count}.0" in lines
    assert not any("engineroom_engine_itl_seconds_count" in x and "pytorch" in x for x in lines)
    helps = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert set(helps) == {series.name for series in VOCABULARY.values()}


def test_a_rule_has_to_fit_the_vocabulary() -> None:
    for wrong in (
        {"ours": "ttfb_seconds", "theirs": "x"},
        {"ours": "requests_total", "theirs": "x"},
        {"ours": "steps_total", "theirs": "x", "label": "why"},
        {"ours": "steps_total", "theirs": "x", "over": "y"},
        {"ours": "requests_total", "theirs": "x", "label": "why", "words": {"a": "eaten"}},
    ):
        with pytest.raises(ValidationError):
            SeriesRule.model_validate(wrong)


RULES = VllmLauncher().watch.series


def test_labels_that_no_rule_knows_make_no_series() -> None:
    lines = [f'vllm:request_success_total{{finished_reason="r{n}"}} 1' for n in range(1000)]
    lines += [f'vllm:generation_tokens_total{{model_name="m{n}"}} 2' for n in range(1000)]
    figures = normalize("\n".join(lines), RULES)
    assert figures.numbers == {
        "requests_total": {"other": 1000}, "generated_tokens_total": {"": 2000},
    }  # fmt: skip


@pytest.mark.parametrize(
    "buckets",
    [
        [("0.1", "1"), ("1", "2")],  # no +Inf
        [("0.1", "3"), ("+Inf", "2")],  # falls
        [("0.1", "nan"), ("+Inf", "2")],
        [("nan", "1"), ("+Inf", "2")],
        [("x", "1"), ("+Inf", "2")],
        [*((str(n), "1") for n in range(64)), ("+Inf", "2")],  # too many
    ],
)
def test_what_is_no_histogram_is_left_out(buckets: list[tuple[str, str]]) -> None:
    name = "vllm:time_to_first_token_seconds"
    text = "\n".join(f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in buckets)
    assert normalize(f"{text}\n{name}_sum 1\n", RULES) == Figures()


@given(st.text(max_size=300), st.sampled_from(RULES))
def test_no_text_is_too_odd(text: str, rule: SeriesRule) -> None:
    normalize(
        f"{rule.theirs}{text}\n{rule.theirs}{{{text}}} 1\n{rule.theirs}_bucket{{{text}", RULES
    )


def test_rows_and_values_of_the_same_text() -> None:
    text = '# HELP a x\na{b="c } d",e="f\\"g"} 1 123\na{} 2\na 3\na nonsense\nab 9\na{b="'
    found = rows(text, ["a"])
    assert found["a"] == [({"b": "c } d", "e": 'f\\"g'}, 1), ({}, 2), ({}, 3)]
    assert values(text, ["a", "z"]) == (6, 0)


NAME = "vllm:num_requests_running"


@pytest.mark.parametrize(
    "line",
    [
        f"{NAME}{{{'a' * (1 << 20)}}} 1",  # one line of a megabyte
        f"{NAME}{{{'a' * 4000}}} 1\n" * 260,  # a megabyte of the longest lines that are read
        f"{NAME}{{{'a=' * 2000}}} 1\n" * 260,
        f"""{NAME}{{{'a="' * 1333}}} 1\n""" * 260,
        f"""{NAME}{{a="{chr(92) * 3999}}} 1\n""" * 260,
        f"{NAME} {'1' * (1 << 20)}",
    ],
    ids=["line", "names", "equals", "quotes", "escapes", "digits"],
)
def test_a_megabyte_of_nonsense_takes_no_longer_than_its_length(line: str) -> None:
    began = time.thread_time()
    normalize(line, RULES)
    assert time.thread_time() - began < 2


def test_a_line_too_long_is_passed_over_and_the_others_stand() -> None:
    found = rows(f"a{{{'b' * 4096}}} 1\na{{{'b' * 4000}}} 2\na 3\n", ["a"])
    assert found["a"] == [({}, 2), ({}, 3)]
