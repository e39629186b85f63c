"""Ollama's API as translation: what is asked of the engine, and what its clients are told."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_launchers.base import Quirks
from orchestrator.control import ModelCard, ModelRoute, Replica
from orchestrator.errors import BadRequest, RequestError
from orchestrator.gateway import answers, openai
from orchestrator.gateway.body import parse
from orchestrator.gateway.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    only_loads,
    to_openai,
)
from orchestrator.gateway.ollama_answers import Times, Told, line, stamp
from orchestrator.gateway.ollama_models import loaded, show, size, tags
from orchestrator.gateway.places import Target


def route(name: str, **fields: Any) -> ModelRoute:
    given = {"state": "ready", "engine": "llama_server", "context": 512, "created": 5, **fields}
    return ModelRoute(name=name, routes=frozenset(), quirks=Quirks(), **given)


def generate(**fields: Any) -> OllamaGenerateRequest:
    return parse(OllamaGenerateRequest, json.dumps({"model": "demo", **fields}).encode())


def chat(*messages: dict[str, Any], **fields: Any) -> OllamaChatRequest:
    body = {"model": "demo", "messages": messages, **fields}
    return parse(OllamaChatRequest, json.dumps(body).encode())


def test_a_prompt_goes_through_the_chat_template_unless_it_is_raw() -> None:
    asked = generate(prompt="Hi", system="Be brief.")
    assert to_openai(asked, chats=True)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert to_openai(asked, chats=False)["prompt"] == "Be brief.\n\nHi"
    assert to_openai(generate(prompt="Hi", raw=True), chats=True)["prompt"] == "Hi"
    with pytest.raises(BadRequest, match="raw"):
        to_openai(generate(prompt="Hi", raw=True, system="x"), chats=True)


def test_options_have_their_names_in_the_other_api() -> None:
    options = {
        "num_predict": 5, "temperature": 0, "top_k": 3, "stop": ["a"], "seed": 1,
        "num_ctx": 8192, "num_gpu": 99, "mirostat": 2, "top_p": None,
    }  # fmt: skip
    body = to_openai(generate(prompt="x", options=options), chats=True)
    body.pop("messages")
    assert body == {
        "model": "demo", "stream": True, "max_tokens": 5, "temperature": 0, "top_k": 3,
        "stop": ["a"], "seed": 1, "mirostat_mode": 2,
    }  # fmt: skip
    assert "max_tokens" not in to_openai(generate(prompt="x", options={"num_predict": -1}), True)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"options": {"sparkle": 1}}, "sparkle"),
        ({"images": ["aGk="]}, "images"),
        ({"context": [1]}, "context"),
        ({"suffix": "x"}, "suffix"),
        ({"think": True}, "think"),
        ({"wat": 1}, "wat"),
        ({"keep_alive": "soon"}, "keep_alive"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        to_openai(generate(prompt="x", **fields), chats=True)


def test_a_format_is_a_response_format() -> None:
    schema = {"type": "object"}
    assert to_openai(generate(prompt="x", format="json"), True)["response_format"] == {
        "type": "json_object"
    }
    asked = to_openai(generate(prompt="x", format=schema), True)["response_format"]
    assert asked["json_schema"]["schema"] == schema
    assert "response_format" not in to_openai(generate(prompt="x", format=""), True)


def test_calls_get_ids_and_their_answers_the_same() -> None:
    calls = [{"function": {"name": name, "arguments": {"city": "Bern"}}} for name in ("a", "b")]
    body = to_openai(
        chat(
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "5", "tool_name": "b"},
            {"role": "tool", "content": "6"},
        ),
        chats=True,
    )
    _, said, second, first = body["messages"]
    ids = {each["function"]["name"]: each["id"] for each in said["tool_calls"]}
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"city": "Bern"}
    assert (second["tool_call_id"], first["tool_call_id"]) == (ids["b"], ids["a"])
    parse(openai.ChatRequest, json.dumps(body).encode())
    with pytest.raises(BadRequest, match="answers no call"):
        to_openai(chat({"role": "tool", "content": "5"}), chats=True)


def test_nothing_to_say_loads_or_lets_go() -> None:
    assert only_loads(generate())
    assert only_loads(generate(prompt="", keep_alive=0))
    assert only_loads(chat())
    assert not only_loads(chat({"role": "user", "content": "x"}))


@given(st.text(), st.sampled_from(["stop", "length", "tool_calls"]))
def test_each_answer_is_one_line_and_the_last_has_the_counts(text: str, reason: str) -> None:
    for is_chat in (False, True):
        told = Told("demo", is_chat)
        counts = answers.usage(3, 4)
        last = told.last("", [], reason, counts, Times(0.5, 1.5, 3.5), 0.0)
        lines = line(told.piece(text, 0.0)) + line(last)
        first, end = (json.loads(each) for each in lines.splitlines())
        said = first["message"]["content"] if is_chat else first["response"]
        assert (said, first["done"], end["done"]) == (text, False, True)
        assert end["done_reason"] == ("length" if reason == "length" else "stop")
        assert (end["prompt_eval_count"], end["eval_count"]) == (3, 4)
        assert (end["load_duration"], end["prompt_eval_duration"]) == (500_000_000, 1_000_000_000)
        assert (end["eval_duration"], end["total_duration"]) == (2_000_000_000, 3_500_000_000)


def test_calls_are_told_with_objects() -> None:
    given = ['{"a":1}', "no"]
    calls = [{"id": "x", "function": {"name": "f", "arguments": each}} for each in given]
    last = Told("demo", True).last("", calls, "tool_calls", {}, Times(0, 0, 0), 0.0)
    assert [each["function"]["arguments"] for each in last["message"]["tool_calls"]] == [
        {"a": 1},
        {"arguments": "no"},
    ]


def test_times_are_written_in_utc() -> None:
    assert datetime.fromisoformat(stamp(1.5)) == datetime.fromtimestamp(1.5, UTC)
    assert stamp(0) == "1970-01-01T00:00:00Z"


def test_models_are_listed_with_a_tag_and_what_they_are() -> None:
    card = ModelCard(
        format="gguf", architecture="llama", quantization="Q4_K_M", params=7_241_000_000,
        weight_bytes=4_000_000_000, memory_bytes=5_000_000_000, gpu_bytes=3_000_000_000,
    )  # fmt: skip
    replica = Replica(id="a-0", generation=1, base_url="x", accepting=True, max_concurrency=1)
    both = [route("a", card=card, replicas=(replica,)), route("b:7b", card=card)]
    listed = tags([Target(each, each.names[0]) for each in both])["models"]
    assert [each["name"] for each in listed] == ["a:latest", "b:7b"]
    assert listed[0]["details"]["parameter_size"] == "7.2B"
    assert listed[0]["digest"] != listed[1]["digest"]
    (running,) = loaded(both, 0.0)["models"]
    assert (running["size"], running["size_vram"]) == (5_000_000_000, 3_000_000_000)
    assert show(both[0])["model_info"]["llama.context_length"] == both[0].context


@pytest.mark.parametrize(
    ("params", "told"), [(999, "999"), (12_000, "12.0K"), (360_500_000, "360.5M")]
)
def test_numbers_of_weights_as_people_say_them(params: int, told: str) -> None:
    assert size(params) == told
