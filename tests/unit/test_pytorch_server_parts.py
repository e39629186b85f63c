"""The PyTorch server's pure parts; torch is not needed for them, so they run everywhere."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.harness import ROOT


def part(name: str) -> ModuleType:
    """A module of the server, loaded as the server sees it: by its file, without a package."""
    path = ROOT / "engine_launchers" / "servers" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


text, turns = part("pytorch_text"), part("pytorch_turns")
bodies, flags = part("pytorch_bodies"), part("pytorch_flags")
metrics, engines = part("pytorch_metrics"), part("pytorch_engine")


# --- stop strings ---


def cut(whole: str, stops: list[str], step: int) -> tuple[str, bool]:
    """What a client gets of a text that comes in pieces of `step` characters."""
    scanner = text.StopScanner(stops)
    out = ""
    for at in range(0, len(whole), step):
        out += scanner.feed(whole[at : at + step])
        for stop in stops:
            assert stop not in out
    return out + scanner.flush(), scanner.stopped


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("stops", "sent", "stopped"),
    [
        (["lamp"], "the desk ", True),
        (["k l"], "the des", True),
        (["amp", "lamp"], "the desk ", True),
        (["desk lamps!", "sk"], "the de", True),
        (["lampe"], "the desk lamp", False),
        (["lampX", "amp"], "the desk l", True),
        (["p", "lamp, no"], "the desk lam", True),
        ([], "the desk lamp", False),
    ],
)
def test_text_is_cut_before_the_stop_string(
    stops: list[str], sent: str, stopped: bool, step: int
) -> None:
    assert cut("the desk lamp", stops, step) == (sent, stopped)


def test_half_a_stop_string_is_never_sent() -> None:
    scanner = text.StopScanner(["\nUser:"])
    assert scanner.feed("Hello\nUs") == "Hello"
    assert scanner.feed("e") == ""
    assert scanner.feed("ful") == "\nUseful"
    assert scanner.feed(" things\nUser: x") == " things"
    assert scanner.stopped
    assert scanner.feed("more") == scanner.flush() == ""


# --- detokenization ---


def from_bytes(ids: list[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_characters_come_whole(step: int) -> None:
    said = "Grüße, 世界! 🏠🏡 " * 20
    ids = list(said.encode())
    past = text.Detokenizer(from_bytes, list("prompt ü".encode()))
    parts = [past.feed(ids[at : at + step]) for at in range(0, len(ids), step)]
    assert "".join(parts) == said
    assert not any("\ufffd" in each for each in parts)


def test_a_character_cut_by_the_end_is_not_sent() -> None:
    past = text.Detokenizer(from_bytes, [])
    assert past.feed(list("a🏠".encode())[:-1]) == "a"


def test_broken_bytes_do_not_hold_the_text_back_for_ever() -> None:
    past = text.Detokenizer(from_bytes, [])
    sent = "".join(past.feed([0x80]) for _ in range(100))
    assert len(sent) > 50


def test_a_tokenizer_that_drops_the_first_space_loses_none() -> None:
    words = ["Hello", " world", " of", " words"]
    past = text.Detokenizer(lambda ids: "".join(words[i] for i in ids).lstrip(), [0])
    assert [past.feed([i]) for i in (1, 2, 3)] == [" world", " of", " words"]


# --- turns ---


def test_one_adapter_fills_the_places_in_order() -> None:
    line = turns.Turns(places=2, entries=4, seconds=2.0)
    for ticket in range(3):
        line.join(ticket, "")
    assert line.decide(0.0).tickets == (0, 1)
    assert line.decide(0.0) is None
    line.leave(0)
    assert line.decide(9.0).tickets == (2,)
    assert (line.running, line.waiting) == (2, 0)


def test_an_adapter_waits_until_the_batch_is_empty_then_takes_its_turn() -> None:
    line = turns.Turns(places=4, entries=8, seconds=2.0)
    line.join(1, "")
    line.decide(0.0)
    line.join(2, "a")
    assert line.decide(0.0) is None
    line.leave(1)
    assert line.decide(0.1) == turns.Switch("a")
    assert line.decide(0.1) is None, "nothing enters while the adapter changes"
    line.switched()
    assert line.decide(0.2).tickets == (2,)


@pytest.mark.parametrize(("entries", "seconds"), [(3, 1e9), (10**9, 2.0)])
def test_nobody_starves_under_a_steady_stream(entries: int, seconds: float) -> None:
    line = turns.Turns(places=2, entries=entries, seconds=seconds)
    line.join(0, "")
    assert line.decide(0.0).tickets == (0,)
    line.join(1000, "a")
    line.join(1001, "b")
    served: list[str] = []
    flying = [0]
    for at in range(1, 40):
        line.join(at, "")
        step: Any = line.decide(float(at))
        while step is not None:
            if isinstance(step, turns.Switch):
                assert not flying, "an adapter never changes under a request"
                line.switched()
            else:
                flying += step.tickets
                served += [line.active for _ in step.tickets]
            step = line.decide(float(at))
        if flying:
            line.leave(flying.pop(0))
    assert {"a", "b"} <= set(served[:12])
    assert served.count("") > 10


def test_who_leaves_the_line_is_not_waited_for() -> None:
    line = turns.Turns(places=1, entries=2, seconds=2.0)
    line.join(1, "a")
    line.leave(1)
    line.leave(77)
    assert line.decide(0.0) is None
    assert line.waiting == line.running == 0


# --- bodies ---


def refusal(check: Any, body: object) -> Any:
    """The refusal that a body gets."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(bodies.Refused) as caught:
        check(raw)
    error = caught.value.envelope()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert caught.value.status == 400
    return error


OK = {"model": "m", "prompt": "p"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("prompt", value) for value in ("", [], 5, ["a", "b"], [-1], [1.5], [True], "\ud800")),
        *(("max_tokens", value) for value in (0, -1, 1.5, "5", True, 10**12)),
        *(("temperature", value) for value in (-1, "hot", True, 1e9, float("nan"))),
        *(("top_p", value) for value in (0, 1.1, "x")),
        *(("top_k", value) for value in (-2, 1.5)),
        *(("seed", value) for value in (1.5, "x", 2**70)),
        *(("stop", value) for value in ("", [""], [1], ["a"] * 17, {"a": 1})),
        *(("n", value) for value in (2, 0, True, "1")),
        *(("stream", value) for value in (1, "yes")),
        *(("stream_options", value) for value in ({"include_usage": True}, {"x": 1}, 5)),
        *(("repetition_penalty", value) for value in (0, -1)),
        *(("model", value) for value in ("", 5)),
        *((name, 1) for name in ("logprobs", "best_of", "echo", "logit_bias", "beam")),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_its_name(field: str, value: object) -> None:
    assert refusal(bodies.completion, {**OK, field: value})["param"] == field


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    assert refusal(bodies.completion, raw)["code"] == "invalid_json"


def test_a_missing_prompt_is_refused() -> None:
    assert refusal(bodies.completion, {"model": "m"})["param"] == "prompt"


@pytest.mark.parametrize(
    "messages",
    [
        None, [], "hi", [5], [{"role": "user"}], [{"role": "king", "content": "x"}],
        [{"role": "user", "content": 5}], [{"role": "user", "content": "x", "tool_calls": []}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
    ],
)  # fmt: skip
def test_wrong_messages_are_refused(messages: object) -> None:
    assert refusal(bodies.chat, {"model": "m", "messages": messages})["param"] == "messages"


def test_a_right_body_is_understood() -> None:
    body = {
        **OK, "max_tokens": None, "temperature": 0.5, "top_k": -1, "seed": -1, "stop": "x",
        "stream": True, "stream_options": {"include_usage": True}, "presence_penalty": 1,
    }  # fmt: skip
    asked = bodies.completion(json.dumps(body).encode())
    assert (asked.prompt, asked.max_tokens, asked.default_tokens) == ("p", None, 16)
    assert (asked.stop, asked.stream, asked.include_usage, asked.seeded) == (("x",), *[True] * 3)
    rules = asked.sampling
    assert (rules.temperature, rules.top_k, rules.seed) == (0.5, 0, 2**64 - 1)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = bodies.chat(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode()
    )
    assert chat.messages == ({"role": "user", "content": "ab"},)
    assert chat.max_tokens is chat.default_tokens is None


# --- flags ---


@pytest.mark.parametrize(
    "argv",
    [
        [], ["--model", "m", "--n_ctx", "5"], ["--model", "m", "--max-num", "5"],
        ["--model", "m", "--quantization", "nf3"], ["--model", "m", "--port", "0"],
        ["--model", "m", "--max-num-seqs", "0"], ["--model", "m", "--adapter", "a"],
        ["--model", "m", "--adapter", "a=x", "--adapter", "a=y"],
        ["--model", "m", "--served-model-name", "a", "--adapter", "a=x"],
        ["--model", "m", "--default-adapter", "a"], ["--model", "m", "--shutdown-timeout", "-1"],
    ],
)  # fmt: skip
def test_wrong_flags_end_with_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        flags.parse(argv)
    assert caught.value.code == 2
    assert "pytorch_server.py: error: " in capsys.readouterr().err


def test_flags_are_read() -> None:
    got = flags.parse(
        [
            *("--model", "m", "--served-model-name", "a", "b", "--served-model-name", "c"),
            *("--adapter", "x=/p=q", "--compile"),
        ]
    )
    assert got.served == ("a", "b", "c")
    assert got.adapters == (flags.Adapter("x", "/p=q"),)
    assert (got.compile, got.max_queue_size, got.num_blocks) == (True, 32, None)


# --- the engine over a loop that fails ---


class _Loop:
    """A loop that lives and computes nothing; adapters cannot be activated."""

    blocks_used = iterations = 0

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.entered: list[str] = []

    def death(self) -> None:
        return None

    def add(self, name: str, *_: object) -> bool:
        self.entered.append(name)
        return True

    def cancel(self, name: str) -> None:
        self.entered.remove(name)

    def switch(self, adapter: str) -> None:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no layer a0"), KeyError("a0"), RuntimeError("dead")])
def test_a_switch_that_fails_ends_every_request_and_the_engine(error: Exception) -> None:
    options = flags.parse(["--model", "m", "--adapter", "x=/p"])
    loaded = SimpleNamespace(
        adapters={"x": "a0"}, num_blocks=4, vocabulary=9, max_model_len=64, eos=()
    )

    def ask(model: str) -> Any:
        return bodies.completion(json.dumps({"model": model, "prompt": [1]}).encode())

    async def run() -> None:
        engine = engines.Engine(loaded, options, _Loop(error), metrics.Metrics())
        base = engine.submit(ask("m"), [1])
        waiting = [engine.submit(ask("x"), [1]) for _ in range(2)]
        assert engine.alive()
        engine.close(base, "stop")  # the batch is empty: x has its turn
        for stream in waiting:
            with pytest.raises(bodies.Refused, match="the engine failed: adapter x was not act"):
                await asyncio.wait_for(anext(engine.events(stream)), 20)
            engine.close(stream, "error")
        assert f"{type(error).__name__}: {error}" in engine.death()
        assert not engine.alive()
        with pytest.raises(bodies.Refused) as refused:
            engine.submit(ask("m"), [1])
        assert refused.value.status == 503
        await asyncio.wait_for(engine.emptied(), 20)

    asyncio.run(run())
