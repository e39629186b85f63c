"""Request bodies: what is refused, by which name, and what is passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_launchers.llama_cpp import LlamaCppLauncher
from orchestrator.errors import BadRequest, RequestError, UnsupportedParameter
from orchestrator.gateway import answers, openai, quick
from orchestrator.gateway.body import parse, parse_json
from orchestrator.gateway.generate import GenerateRequest, result, to_completion
from tests.examples import examples

QUIRKS = LlamaCppLauncher().quirks


def generate(**fields: Any) -> GenerateRequest:
    return parse(GenerateRequest, json.dumps({"prompt": "Hi", **fields}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b'"x"', b"{} {}", b"{}x", b"\xef\xbb\xbf{}", b"\xff", b'{"a":NaN}',
        b'{"a":Infinity}', b'{"a":1,"a":2}', b'{"a":"\\ud800"}', b'{"a":"\\u0000"}',
        b"[" * 100 + b"]" * 100, b"{" + b'"a":{' * 100_000, b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_not_a_plain_json_object_is_a_bad_request(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(GenerateRequest, data)


def test_brackets_inside_strings_do_not_nest() -> None:
    assert parse_json(json.dumps({"a": "[" * 500 + '"\\' + "{" * 500}).encode())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=9))
def test_any_json_is_parsed_or_refused_in_our_words(value: object) -> None:
    try:
        assert parse_json(json.dumps(value).encode()) == value
    except BadRequest:
        assert "\\u0000" in json.dumps(value) or "\\ud" in json.dumps(value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": "5"}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["x" * 65]}, "stop"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"model": 5}, "model"),
        ({"stream": 1}, "stream"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        generate(**fields)
    assert caught.value.param == param


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter, match="max_tokenz") as caught:
        generate(max_tokenz=3)
    assert caught.value.param == "max_tokenz"
    with pytest.raises(BadRequest, match="'prompt' is required"):
        parse(GenerateRequest, b"{}")


def test_defaults_are_those_of_the_documents() -> None:
    body = to_completion(generate(), QUIRKS)
    assert body == {
        "prompt": "Hi",
        "max_tokens": 256,
        "temperature": 0.7,
        "top_p": 0.95,
        "stream": True,
    }


def test_do_sample_false_is_greedy_whatever_the_temperature() -> None:
    body = to_completion(generate(do_sample=False, temperature=1.5, top_p=0.3), QUIRKS)
    assert (body["temperature"], body["top_p"]) == (0, 1)


def test_the_engine_gets_its_own_name_for_the_repetition_penalty() -> None:
    body = to_completion(generate(repetition_penalty=1.1, stop="x", seed=3), QUIRKS)
    assert (body["repeat_penalty"], body["stop"], body["seed"]) == (1.1, "x", 3)


def test_a_result_counts_tokens_per_second() -> None:
    assert result("t", 10, 2.0, "stop", model="demo") == {
        "generated_text": "t",
        "token_count": 10,
        "computation_time": 2.0,
        "throughput": 5.0,
        "model": "demo",
        "finish_reason": "stop",
    }


def chat(**fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    request = parse(openai.ChatRequest, json.dumps(body).encode())
    return openai.upstream_body(request, QUIRKS.chat_fields)


def completion(**fields: Any) -> dict[str, Any]:
    request = parse(openai.CompletionRequest, json.dumps({"prompt": "Hi", **fields}).encode())
    return openai.upstream_body(request, QUIRKS.completion_fields)


def test_bodies_are_re_encoded_as_streams() -> None:
    assert completion() == {"prompt": "Hi", "stream": True}
    assert completion(prompt=["Hi"], stream=False, stream_options={"include_usage": True}) == {
        "prompt": "Hi",
        "stream": True,
    }


def test_newer_clients_names_are_translated() -> None:
    body = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
        ],
        max_completion_tokens=7,
    )
    assert body["max_tokens"] == 7
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "aa"},
    ]


@pytest.mark.parametrize(
    "field", ["n_discard", "prompt_embeds", "kv_transfer_params", "vllm_xargs", "chat_template"]
)
def test_dangerous_fields_never_reach_an_engine(field: str) -> None:
    for build in (chat, completion):
        with pytest.raises(UnsupportedParameter) as caught:
            build(**{field: -5})
        assert caught.value.param == field


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2}, {"n": 0}, {"temperature": 3}, {"max_tokens": 0}, {"stop": [""]}, {"seed": 2**64},
        {"messages": []}, {"messages": [{"role": "king", "content": "x"}]}, {"messages": "x"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"max_tokens": 1, "max_completion_tokens": 1}, {"stream_options": {"x": 1}},
        {"presence_penalty": 3}, {"model": None, "user": 5}, {"top_k": "x"}, {"top_k": -5},
        {"min_p": -1}, {"logit_bias": []}, {"logit_bias": {"1": "x"}}, {"tools": "x"},
        {"tool_choice": "junk"}, {"response_format": "x"}, {"mirostat_mode": 9},
        {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": "x", "y": 1}]},
    ],
)  # fmt: skip
def test_wrong_chat_bodies_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.http_status == 400


def test_what_a_client_was_given_it_may_send_back() -> None:
    given = {"role": "assistant", "content": "x", "refusal": None, "annotations": None}
    body = chat(
        messages=[{"role": "user", "content": "a"}, given],
        logprobs=False, store=False, parallel_tool_calls=True, service_tier="auto", stop=None,
    )  # fmt: skip
    assert body["messages"][1] == {"role": "assistant", "content": "x"}
    assert set(body) == {"messages", "stream"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stop": ["a"] * 5}, "at most 4"),
        ({"prompt": ["a", "b"]}, "one prompt"),
        ({"prompt": [1, 2]}, "token ids"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_refusals_say_what_is_wrong(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        completion(**fields)


def test_chunks_become_a_whole_answer() -> None:
    counts = answers.usage(3, 2)
    head = {"id": "x", "created": 1, "model": "demo"}
    deltas: list[dict[str, Any]] = [{"role": "assistant"}, {"content": "a"}, {"content": "b"}, {}]
    chunks = [
        {**head, "choices": [{"index": 0, "delta": d, "finish_reason": None if d else "stop"}]}
        for d in deltas
    ]
    answer = answers.whole_answer(chunks, counts, "ab")
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "ab"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_tool_calls_are_put_together() -> None:
    parts = [
        {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    chunks = [{"choices": [{"delta": {"tool_calls": [p]}, "finish_reason": None}]} for p in parts]
    message = answers.whole_answer(chunks, answers.usage(1, 1), "")["choices"][0]["message"]
    assert message["content"] is None
    call = {"name": "f", "arguments": '{"a":1}'}
    assert message["tool_calls"] == [{"type": "function", "function": call, "id": "c"}]


def test_an_engine_that_wants_to_be_asked_for_usage_is_asked() -> None:
    plain = {"prompt": "Hi", "stream": True}
    assert openai.asking_usage(plain, QUIRKS) == plain
    asking = QUIRKS.model_copy(update={"usage_on_request": True})
    asked = {"stream_options": {"include_usage": True}}
    assert openai.asking_usage(plain, asking) == plain | asked


# --- at a glance --------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(-3, 3), st.sampled_from([2**32, 2**70]),
    st.text(max_size=4), st.lists(st.text(max_size=2), max_size=5),
    st.fixed_dictionaries({"include_usage": st.booleans()}),
    st.sampled_from([{"include_usage": 1}, {}, {"include_usage": True, "x": 1}]),
)  # fmt: skip
GIVEN_TEXT = st.text(max_size=5) | st.sampled_from(['"a":1', 'a" :', "\\", "[[{{", "\0", "x" * 70])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "boss", "tool"])},
    optional={"content": GIVEN_TEXT | VALUES, "name": st.just("n")},
)
NAMES = st.sampled_from([*quick.CHAT, *quick.GENERATE, "n", "logprobs", "keep_alive", "nonsense"])
GOOD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 5), "max_new_tokens": st.integers(1, 5), "top_p": st.just(0.5),
    "temperature": st.sampled_from([0, 1.5, 2]), "stream": st.booleans(), "stop": st.just("x"),
    "model": st.just("m"), "stream_options": st.just({"include_usage": True}),
}  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly good bodies, some with a wrong value, a key twice, or odd spaces."""
    fields = draw(st.dictionaries(NAMES, st.none(), max_size=5))
    pairs: list[tuple[str, Any]] = [
        (name, draw(GOOD_VALUES.get(name, VALUES) if draw(st.integers(0, 4)) else VALUES))
        for name in fields
    ]
    pairs.append(("messages", draw(st.lists(MESSAGE, max_size=3))))
    pairs = [each for each in pairs if draw(st.integers(0, 30))]
    pairs.append(("prompt", draw(GIVEN_TEXT)))
    if draw(st.booleans()):
        pairs = [each for each in pairs if each[0] != draw(st.sampled_from(["prompt", "messages"]))]
    if pairs and not draw(st.integers(0, 4)):
        pairs.append(draw(st.sampled_from(pairs)))
    colon = draw(st.sampled_from([":", ": ", ":", ": ", " :", "\n:"]))
    ascii_ = draw(st.booleans())
    dumps = [f"{json.dumps(k)}{colon}{json.dumps(v, ensure_ascii=ascii_)}" for k, v in pairs]
    return ("{" + ", ".join(dumps) + "}").encode("utf-8", "surrogatepass")


WIDE = frozenset({*quick.CHAT, *quick.COMPLETION})


@settings(max_examples=examples(1500), deadline=None)
@given(bodies())
def test_what_is_accepted_at_a_glance_is_accepted_by_the_models_and_means_the_same(
    data: bytes,
) -> None:
    kinds = [(openai.ChatRequest, quick.CHAT, "messages")]
    kinds += [(openai.CompletionRequest, quick.COMPLETION, "prompt")]  # type: ignore[list-item]
    for model, fields, needed in kinds:
        usual = quick.accepted(data, fields, needed)
        if usual is None:
            continue
        request = parse(model, data)
        assert (bool(request.stream), request.model, request.keep_alive) == (
            usual.pop("stream", False), usual.pop("model", None), None,
        )  # fmt: skip
        options = usual.pop("stream_options", {})
        assert request.wants_usage is options.get("include_usage", False)
        assert {**usual, "stream": True} == openai.upstream_body(request, WIDE)
    usual = quick.accepted(data, quick.GENERATE, "prompt")
    if usual is not None:
        constructed = GenerateRequest.model_construct(set(usual), **usual)
        assert constructed == parse(GenerateRequest, data)


def test_the_usual_bodies_are_accepted_at_a_glance() -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "a: [b]\n"}],
            "max_tokens": 5, "temperature": 0.7, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    for dumped in (json.dumps(chat), json.dumps(chat, indent=1)):
        assert quick.accepted(dumped.encode(), quick.CHAT, "messages") == chat
    assert quick.accepted(b'{"prompt":"x"}', quick.GENERATE, "prompt") == {"prompt": "x"}
    for odd in (
        b'{"prompt":"x","prompt":"y"}', b'{"prompt" :"x","prompt":"y"}', b'{"prompt":"\\u0000"}',
        b'{"prompt":"a\\":b","seed":1,"seed":2}', b'{"seed":1}', b"[]", b"{", b'{"prompt":""}',
    ):  # fmt: skip
        assert quick.accepted(odd, quick.GENERATE, "prompt") is None
