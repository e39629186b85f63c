"""Real vLLM on the processor, through the launcher's command and the process runtime."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.models.config_json import spec_from_config
from orchestrator.resources import demo_dir
from tests.e2e.real_vllm import START_S, Engine, Program, plan_of, random_adapter, text
from tests.harness import SLACK, until, within
from tests.series import assert_told_in_our_words

# Starts count where a test makes them.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]
GIB = 2**30
KEY = "a key for tests"
QUESTION = "What products do you recommend?"


@pytest.fixture(scope="module")
def program(installed: Callable[[str], Program]) -> str:
    return installed("vllm").program


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, program: str) -> Iterator[Engine]:
    """One engine with an adapter, for all tests that do not end it."""
    folder = tmp_path_factory.mktemp("v")
    plan = plan_of(random_adapter(folder / "adapter"), max_concurrency=8)
    engine = Engine(folder, program, plan, VLLM_API_KEY=KEY)
    yield engine.ready()
    engine.close()


def test_the_key_is_asked_for_and_stands_in_no_command_line(one: Engine) -> None:
    refused = httpx.get(f"{one.http.base_url}/v1/models", trust_env=False)
    assert refused.status_code == 401
    assert not any(KEY in word for each in one.tree() for word in each.cmdline())


def assert_takes_what_was_planned(engine: Engine) -> None:
    """Pages that its processes share count once."""
    engine.complete(QUESTION)
    parts = [each.memory_full_info() for each in engine.tree()]
    held = sum(each.uss for each in parts) + max(each.shared for each in parts)
    planned = engine.plan.estimate[0].total
    told = f"planned {planned / GIB:.2f}, held {held / GIB:.2f} GiB"
    print(told)
    assert planned == pytest.approx(held, rel=0.10), told


def test_it_takes_the_memory_that_was_planned(one: Engine) -> None:
    assert_takes_what_was_planned(one)


def test_a_model_of_1b_weights_takes_what_was_planned(tmp_path: Path, program: str) -> None:
    """Made-up weights: vLLM fills the shape by itself."""
    folder = tmp_path / "1b"
    shutil.copytree(demo_dir(), folder, ignore=shutil.ignore_patterns("*.gguf", "*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    model = spec_from_config(config, model_id="demo", source=str(folder))
    assert 0.9e9 < model.params < 1.2e9
    plan = plan_of(model=model, max_concurrency=4, extra_args=("--load-format", "dummy"))
    engine = Engine(tmp_path, program, plan)
    try:
        assert_takes_what_was_planned(engine.ready())
    finally:
        engine.close()


def test_a_stream_says_what_a_plain_answer_says(one: Engine) -> None:
    for fields in ({}, {"temperature": 1.0, "seed": 5}, {"max_tokens": 200}):
        whole = one.complete(QUESTION, **fields)
        chunks = one.stream(QUESTION, **fields)
        said = "".join(text(each) for each in chunks if each["choices"])
        assert said == text(whole)
        assert chunks[-1]["usage"].items() <= whole["usage"].items()
        ends = [each["choices"][0]["finish_reason"] for each in chunks if each["choices"]]
        assert ends[-1] == whole["choices"][0]["finish_reason"]


def test_token_counts_are_the_tokenizers(one: Engine) -> None:
    for prompt in (QUESTION, "Hi", "Grüße, 世界!"):
        answer = one.complete(prompt, max_tokens=7, ignore_eos=True)
        told = one.http.post("/tokenize", json={"model": "demo", "prompt": prompt}).json()
        assert answer["usage"]["prompt_tokens"] == told["count"]
        assert answer["usage"]["completion_tokens"] == 7


def test_a_seed_repeats_and_another_differs(one: Engine) -> None:
    def asked(seed: int) -> str:
        return text(one.complete(QUESTION, temperature=1.5, seed=seed, max_tokens=60))

    assert asked(1) == asked(1)
    assert len({asked(seed) for seed in range(5)}) > 1


def test_a_stop_string_ends_it_and_is_left_out(one: Engine) -> None:
    whole = text(one.complete(QUESTION))
    word = whole.split()[2]
    answer = one.complete(QUESTION, stop=[word])
    assert text(answer) == whole[: whole.index(word)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_adapter_is_asked_for_by_its_name(one: Engine) -> None:
    served = {each.name: each.model for each in one.launcher.served(one.plan)}
    names = {each["id"] for each in one.http.get("/v1/models").json()["data"]}
    assert set(served.values()) == names
    plain, other = text(one.complete(QUESTION)), one.complete(QUESTION, model=served["other"])
    assert text(other) != plain
    assert text(one.complete(QUESTION)) == plain


def test_every_field_of_the_allow_list_is_taken(one: Engine) -> None:
    values: dict[str, Any] = {
        "model": "demo", "stream": False, "stream_options": None, "max_tokens": 8, "min_tokens": 2,
        "stop": ["zzz"], "seed": 3, "user": "u", "temperature": 0.5, "top_p": 0.9, "top_k": 20,
        "min_p": 0.01, "n": 1, "logit_bias": {"5": 1}, "ignore_eos": False,
        "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1,
        "response_format": {"type": "text"}, "prompt": "Hi", "tools": None, "tool_choice": None,
        "parallel_tool_calls": True, "messages": [{"role": "user", "content": "Hi"}],
    }  # fmt: skip
    quirks = one.launcher.quirks
    for path, fields in (
        ("/v1/completions", quirks.completion_fields),
        ("/v1/chat/completions", quirks.chat_fields),
    ):
        answer = one.http.post(path, json={field: values[field] for field in fields})
        assert answer.status_code == 200, answer.text


def test_its_metrics_are_told_in_our_words(one: Engine) -> None:
    def generate() -> int:
        return int(one.complete(QUESTION, ignore_eos=True)["usage"]["completion_tokens"])

    rules = one.launcher.watch.series
    assert_told_in_our_words(rules, lambda: one.http.get("/metrics").text, generate)


def test_a_stop_with_requests_in_flight_takes_no_longer_than_its_grace(
    tmp_path: Path, program: str
) -> None:
    engine = Engine(tmp_path, program, plan_of(max_concurrency=1)).ready()
    try:
        with ThreadPoolExecutor() as pool:
            asked = {"model": "demo", "prompt": "Hi", "max_tokens": 1900, "ignore_eos": True}
            busy = pool.submit(engine.http.post, "/v1/completions", json=asked)
            until(lambda: busy.done() or _running(engine), 60, "a request runs")
            with within(13, "the grace and its kill"):
                exit = engine.stop(10)
            # Where its worker ends before its core it waits for ever, and is killed.
            assert exit.code == 0 or exit.signal == signal.SIGKILL, exit
            busy.exception(30 * SLACK)
    finally:
        engine.close()


def _running(engine: Engine) -> bool:
    found = re.search(r"num_requests_running\{.*\} ([\d.]+)", engine.http.get("/metrics").text)
    return bool(found and float(found[1]) > 0)


def test_a_stop_while_it_starts_is_over_at_once(tmp_path: Path, program: str) -> None:
    engine = Engine(tmp_path, program, plan_of(max_concurrency=1))
    until(lambda: any("(EngineCore" in line for line in engine.log), START_S, "its core starts")
    with within(4, "the grace and its kill"):
        engine.stop(2)
    engine.close()
