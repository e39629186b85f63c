"""A model's defaults: what a request says wins, and no engine is asked what it does not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_launchers.llama_cpp import LlamaCppLauncher
from orchestrator.errors import ConfigError
from orchestrator.gateway import openai
from orchestrator.gateway.body import parse
from orchestrator.gateway.defaults import with_defaults
from orchestrator.gateway.generate import GenerateRequest, to_completion
from orchestrator.settings import load_settings

QUIRKS = LlamaCppLauncher.quirks
DEFAULTS = {"temperature": 0.2, "max_new_tokens": 9, "repetition_penalty": 1.5}


def generate(data: bytes, **defaults: float) -> dict[str, object]:
    request = parse(GenerateRequest, data)
    body, said = to_completion(request, QUIRKS), request.model_fields_set
    return with_defaults(body, said, defaults or DEFAULTS, QUIRKS, QUIRKS.completion_fields)


def chat(data: bytes, **defaults: float) -> dict[str, object]:
    request = parse(openai.ChatRequest, data)
    body = openai.upstream_body(request, QUIRKS.chat_fields)
    said = request.model_fields_set
    return with_defaults(body, said, defaults or DEFAULTS, QUIRKS, QUIRKS.chat_fields)


def test_silence_is_filled_and_words_are_kept() -> None:
    body = generate(b'{"prompt": "x"}')
    assert (body["temperature"], body["max_tokens"]) == (0.2, 9)
    assert body[QUIRKS.repetition_field] == 1.5
    body = generate(b'{"prompt": "x", "temperature": 0.7, "max_new_tokens": 3}')
    assert (body["temperature"], body["max_tokens"]) == (0.7, 3)
    start = b'{"messages": [{"role": "user", "content": "x"}]'
    assert chat(start + b"}")["max_tokens"] == 9
    assert chat(start + b', "max_completion_tokens": 3}')["max_tokens"] == 3
    assert chat(start + b', "max_tokens": 4, "temperature": 0}')["temperature"] == 0
    assert chat(start + b', "repeat_penalty": 1.1}')[QUIRKS.repetition_field] == 1.1


def test_greedy_stays_greedy_and_what_the_engine_does_not_take_is_not_sent() -> None:
    body = generate(b'{"prompt": "x", "do_sample": false}', temperature=1.0, top_p=0.5, seed=1)
    assert (body["temperature"], body["top_p"]) == (0, 1)
    request = parse(GenerateRequest, b'{"prompt": "x"}')
    body = with_defaults({}, request.model_fields_set, {"top_k": 5}, QUIRKS, {"temperature"})
    assert body == {}


def test_they_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("defaults: {temperature: 0.5}\nmodels: [{model: demo, defaults: {seed: 3}}]\n")
    (each,) = load_settings(env={}, file=file).each()
    assert each.defaults is not None
    assert each.defaults.model_dump(exclude_none=True) == {"seed": 3}
    for wrong in ("{temperature: 3}", "{temprature: 1}", "{seed: .nan}", "7"):
        file.write_text(f"defaults: {wrong}\n")
        with pytest.raises(ConfigError, match="defaults"):
            load_settings(env={}, file=file)
