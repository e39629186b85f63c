"""The makers' own clients, unmodified, against a real engine: a chat and a stream of each."""

from __future__ import annotations

import anthropic
import ollama
import openai
import pytest

from tests.harness import Room

pytestmark = [pytest.mark.real, pytest.mark.slow]
ASKED = "When does the shop open?"


def test_ollamas_client(real: Room) -> None:
    with ollama.Client(host=real.url) as client:
        _speaks_ollama(client)


def _speaks_ollama(client: ollama.Client) -> None:
    messages = [{"role": "user", "content": ASKED}]
    options = {"temperature": 0, "num_predict": 12, "num_ctx": 512}
    whole = client.chat("demo", messages=messages, options=options)
    assert whole.message.content
    assert (whole.done, whole.done_reason) == (True, "length")
    assert whole.eval_count == 12
    assert whole.prompt_eval_count
    parts = list(client.chat("demo:latest", messages=messages, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 5
    said = client.generate("demo", ASKED, options=options)
    assert said.response == whole.message.content  # the chat template, as in Ollama
    raw = client.generate("demo", ASKED, options=options, raw=True, stream=True)
    assert "".join(part.response or "" for part in raw)


def test_ollamas_client_looks_around(real: Room) -> None:
    with ollama.Client(host=real.url) as client:
        _looks_around(client)


def _looks_around(client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert listed.model == "demo:latest"
    assert listed.size
    assert listed.details is not None
    assert listed.details.format == "gguf"
    (running,) = client.ps().models
    assert running.context_length
    assert running.size
    shown = client.show("demo")
    assert shown.capabilities is not None
    assert "completion" in shown.capabilities
    assert client.generate("demo", "", keep_alive=-1).done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="no model of that name") as caught:
        client.chat("nobody", messages=[{"role": "user", "content": "x"}])
    assert caught.value.status_code == 404


def test_anthropics_client(real: Room) -> None:
    with anthropic.Anthropic(base_url=real.url, api_key="unused", max_retries=0) as client:
        _speaks_anthropic(client)


def _speaks_anthropic(client: anthropic.Anthropic) -> None:
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": ASKED}]
    whole = client.messages.create(model="demo", max_tokens=12, messages=messages)
    (block,) = whole.content
    assert block.type == "text"
    assert block.text
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 12)
    with client.messages.stream(model="demo", max_tokens=12, messages=messages) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens == 12
    counted = client.messages.count_tokens(model="demo", messages=messages)
    assert counted.input_tokens > 3
    with pytest.raises(anthropic.NotFoundError, match="no model of that name"):
        client.messages.create(model="nobody", max_tokens=1, messages=messages)


def test_openais_client_and_its_newer_api(real: Room) -> None:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="unused", max_retries=0) as client:
        _speaks_responses(client)


def _speaks_responses(client: openai.OpenAI) -> None:
    whole = client.responses.create(
        model="demo", input=ASKED, max_output_tokens=12, temperature=0, store=False
    )
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens == 12
    parts, last = "", ""
    for event in client.responses.create(
        model="demo", input=ASKED, max_output_tokens=12, temperature=0, stream=True
    ):
        last = event.type
        if event.type == "response.output_text.delta":
            parts += event.delta
    assert (parts, last) == (whole.output_text, "response.completed")
    with client.responses.stream(
        model="demo", input=ASKED, max_output_tokens=12, temperature=0
    ) as stream:
        numbers = [event.sequence_number for event in stream]
        assert stream.get_final_response().output_text == whole.output_text
    assert numbers == sorted(set(numbers))
