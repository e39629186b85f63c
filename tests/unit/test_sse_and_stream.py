"""However bytes are split, the same events; whatever an engine sends, one legal terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx2  # what the client is made with
import openai
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion

from orchestrator.errors import EngineError, RequestError, UpstreamBroken, UpstreamInvalid
from orchestrator.gateway.guard import StreamGuard
from orchestrator.gateway.shapes import Answer, End, Passing, TokenStream, WholeAnswer, WholeText
from orchestrator.gateway.sse import SseReader, event
from orchestrator.gateway.template import learned
from tests.examples import examples

# The aim is 100,000 scripts a night; a run of the suite takes a few hundred of them.
SCRIPTS = int(os.environ.get("STREAM_SCRIPTS", examples(500)))
_CLIENT = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9")


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(points)]


def read(data: bytes, cuts: list[int]) -> list[bytes]:
    reader = SseReader()
    return [payload for part in pieces(data, cuts) for payload in reader.feed(part)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_separates_events(newline: str) -> None:
    text = newline.join([": ping", "event: x", "data: a", "data:b", "", "data: c", "", ""])
    for cut in range(len(text)):
        assert read(text.encode(), [cut]) == [b"a\nb", b"c"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text().filter(lambda t: "\r" not in t and "\n" not in t), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=30),
    st.sampled_from(["\n", "\r\n"]),
)
def test_splits_do_not_matter(texts: list[str], cuts: list[int], newline: str) -> None:
    data = "".join(f"data: {text}{newline}{newline}" for text in texts).encode("utf-8")
    assert read(data, cuts) == [text.encode() for text in texts]


def by_lines(data: bytes) -> tuple[list[bytes], bool]:
    """The payloads of an event stream by the book, and whether an event was left half done."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    found: list[bytes] = []
    held: list[bytes] = []
    for line in lines[:-1]:
        if not line:
            found += [b"\n".join(held)] if held else []
            held = []
        elif line.startswith(b"data:"):
            held.append(line[5:].removeprefix(b" "))
    return found, bool(held or lines[-1])


SHRED = st.sampled_from([b"\n", b"\r", b"\r\n", b"data: x", b"data:", b": c", b"event: e", b"data"])


@settings(max_examples=examples(1000), deadline=None)
@given(st.lists(SHRED, max_size=24), st.lists(st.integers(0, 200), max_size=12))
def test_any_lines_in_any_pieces_are_read_by_the_book(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    reader = SseReader()
    found = [payload for part in pieces(data, cuts) for payload in reader.feed(part)]
    assert (found, reader.half_frame) == by_lines(data)


@given(st.text())
def test_what_we_write_is_one_event_whatever_the_text(text: str) -> None:
    sent = event({"token": text})
    assert [json.loads(payload) for payload in read(sent, [])] == [{"token": text}]
    assert sent.count(b"\n\n") == 1


# --- one terminal -------------------------------------------------------------------------------


def chunk(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return orjson.dumps({"id": "i", "model": "m", "choices": [choice], **more})


def delta(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return orjson.dumps({"id": "i", "model": "m", "choices": [choice], **more})


def sent(*payloads: bytes) -> bytes:
    return b"".join(b"data: " + payload + b"\n\n" for payload in payloads)


GOOD = [chunk("a"), chunk("b", "stop"), b"[DONE]"]


def run(parts: list[bytes], answer: Answer) -> tuple[bytes, StreamGuard]:
    """What the client has been sent when the engine's answer is over, terminal included."""
    guard, out = StreamGuard(answer), b""
    for part in parts:
        out += guard.feed(part)
    guard.end()
    assert guard.over
    assert guard.done is (guard.error is None)
    if guard.error is not None:
        return out + event(guard.error.envelope()), guard
    return out + answer.closing(guard, End(1, guard.pieces, 1.0, 0.5)), guard


def test_a_good_stream_and_one_without_done_are_complete() -> None:
    for payloads in (GOOD, GOOD[:-1]):
        _, guard = run([sent(*payloads)], WholeText("m"))
        assert (guard.full_text, guard.finish_reason, guard.done) == ("ab", "stop", True)


@pytest.mark.parametrize(
    ("payloads", "error"),
    [
        ([chunk("a"), b"[DONE]"], UpstreamBroken),
        ([chunk("a")], UpstreamBroken),
        ([], EngineError),
        ([b"[DONE]"], EngineError),
        ([chunk("a"), b'{"error": {"message": "dead"}}', b"[DONE]"], UpstreamBroken),
        ([b"<html>"], UpstreamInvalid),
        ([b"[1]"], UpstreamInvalid),
        ([b'{"object": "x"}'], UpstreamInvalid),
        ([b'{"choices": [1]}'], UpstreamInvalid),
        ([b'{"choices": [], "x": "\xff"}'], UpstreamInvalid),
        ([b"x" * (2 << 20)], UpstreamInvalid),
    ],
)
def test_everything_else_is_an_error(payloads: list[bytes], error: type[RequestError]) -> None:
    _, guard = run([sent(*payloads)], WholeText("m"))
    assert type(guard.error) is error


def test_an_endless_event_and_half_an_event_are_errors() -> None:
    guard = StreamGuard(WholeText("m"))
    guard.feed(b"data: " + b"x" * (2 << 20))
    assert isinstance(guard.error, UpstreamInvalid)
    _, guard = run([sent(chunk("a")) + b"data: {"], WholeText("m"))
    assert isinstance(guard.error, UpstreamBroken)


def test_what_an_engine_does_after_the_end_spoils_nothing() -> None:
    for rest in (b"data: {", sent(b"<html>"), sent(b'{"error": 1}'), b"data: " + b"x" * (2 << 20)):
        _, guard = run([sent(chunk("a", "stop")) + rest], WholeText("m"))
        assert guard.done


# --- the cheap scan against the parser ----------------------------------------------------------


def parsing(answer: Answer) -> StreamGuard:
    """The guard without its scan: it has missed too often to learn, and parses every event."""
    guard = StreamGuard(answer)
    guard._learner.misses = 1 << 20
    return guard


TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["", "a", '"', "\\", "\n", "\u2028", 'x","finish_reason":"stop', "\ud7ff\U0001f600"]
    ),
)
FINISH = st.sampled_from([None] * 8 + ["stop", "length"])
MORE = st.sampled_from(
    [{}, {}, {}, {"usage": None}, {"usage": {"completion_tokens": 3}}, {"model": "n"}, {"id": "j"}]
)
RAW = st.sampled_from(
    [
        b"[DONE]", b" [DONE] ", b"[DONE]", b'{"error": "x"}', b"{}", b"[]", b"7", b"", b"\xff",
        b'{"choices": [], "usage": {"completion_tokens": 3}}', b'{"choices": [1]}',
        b'{"id":"i","model":"m","choices":[{"index":0,"text":"\\u0041","finish_reason":null}]}',
        b'{"id":"i","model":"m","choices":[{"index":0,"text":"\\ud800","finish_reason":null}]}',
        b'{"id":"i","model":"m","choices":[{"index":0,"text":"\\x","finish_reason":null}]}',
        b'{"id":"i","model":"m","choices":[{"index":0,"text":"\x01","finish_reason":null}]}',
        b'{"id":"i","model":"m","choices":[{"index":0,"text":"\xed\xa0\x80","finish_reason":null}]}',
        b'{"id":"i","model":"m","choices":[{"index":0,"text":"a","text":"b","finish_reason":null}]}',
        b'{"id":"\\"text\\":\\"q","model":"m","choices":[{"index":0,"text":"q","finish_reason":null}]}',
        b'{"id":"i","model":"m","choices":[{"index":0,"text":"a","finish_reason":null}],"error":1}',
        b'{"id":"i", "model":"m", "choices":[{"index":0, "text": "a", "finish_reason":null}]}',
    ]
)  # fmt: skip
PAYLOADS = st.lists(
    st.one_of(st.builds(chunk, TEXTS), st.builds(chunk, TEXTS, FINISH), RAW)
    | st.builds(lambda t, f, m: delta(t, f, **m), TEXTS, FINISH, MORE),
    max_size=14,
)
BETWEEN = st.sampled_from(
    [b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\n\n: ping\n\n", b"\nid: 1\n\n"]
)
TAIL = st.sampled_from([b"", b"", b"data: {", b"\n", b": x"])
ANSWERS: list[Callable[[], Answer]] = [
    lambda: Passing("m", usage=True), lambda: Passing("renamed", usage=False), TokenStream,
    lambda: WholeText("m"), lambda: WholeAnswer("m"),
]  # fmt: skip


@settings(
    max_examples=SCRIPTS, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
@given(
    PAYLOADS,
    st.lists(BETWEEN, min_size=14, max_size=14),
    TAIL,
    st.lists(st.integers(0, 4000), max_size=20),
    st.integers(0, len(ANSWERS) - 1),
    st.booleans(),
)
def test_any_script_has_one_terminal_and_the_scan_says_what_the_parser_says(
    payloads: list[bytes],
    between: list[bytes],
    tail: bytes,
    cuts: list[int],
    which: int,
    one_by_one: bool,
) -> None:
    events = [b"data: " + p + end for p, end in zip(payloads, between, strict=False)] + [tail]
    script = b"".join(events)
    answer = ANSWERS[which]()
    out, guard = run(events if one_by_one else pieces(script, cuts), answer)
    slow_answer, expected = ANSWERS[which](), b""
    slow = parsing(slow_answer)
    for part in pieces(script, cuts[:3]):
        expected += slow.feed(part)
    slow.end()
    assert (guard.done, guard.finish_reason, guard.usage) == (
        slow.done, slow.finish_reason, slow.usage,
    )  # fmt: skip
    assert (guard.events, guard.pieces, guard.begun) == (slow.events, slow.pieces, slow.begun)
    assert guard.full_text == slow.full_text
    assert type(guard.error) is type(slow.error)
    if answer.stream:
        check_terminal(out, guard)
        end = End(1, slow.pieces, 1.0, 0.5)
        rest = event(slow.error.envelope()) if slow.error else slow_answer.closing(slow, end)
        assert shown(out) == shown(expected + rest)
    if isinstance(answer, Passing):
        texts, complete = by_the_client(out)
        assert complete is guard.done
        assert not guard.done or "".join(texts) == guard.full_text
    seen = payloads[: payloads.index(b"[DONE]")] if b"[DONE]" in payloads else payloads
    if guard.done:
        assert any(b'"finish_reason":"' in payload for payload in seen)


def by_the_client(out: bytes) -> tuple[list[str], bool]:
    """The texts that OpenAI's own client reads in a stream, and whether it ends with no error."""
    ask = httpx2.Request("POST", _CLIENT.base_url)
    response = httpx2.Response(200, content=out, request=ask)
    texts: list[str] = []
    try:
        for each in openai.Stream(cast_to=Completion, response=response, client=_CLIENT):
            for choice in each.to_dict().get("choices", ()):  # type: ignore[attr-defined]
                texts.append((choice.get("delta") or {}).get("content") or choice.get("text") or "")
    except openai.APIError:
        return texts, False
    return texts, True


def shown(out: bytes) -> list[Any]:
    events, half = by_lines(out)
    assert not half
    return [each if each == b"[DONE]" else orjson.loads(each) for each in events]


def check_terminal(out: bytes, guard: StreamGuard) -> None:
    """Exactly one of a finish and `[DONE]`, and one error event as the last."""
    events = shown(out)
    errors = [each for each in events if isinstance(each, dict) and "error" in each]
    dones = events.count(b"[DONE]")
    if guard.error is None:
        assert (dones, errors, events[-1]) == (1, [], b"[DONE]")
    else:
        assert (dones, len(errors)) == (0, 1)
        assert events[-1] is errors[0]


def test_a_template_is_proven_not_guessed() -> None:
    good = chunk("hello")
    template = learned(good, orjson.loads(good))
    assert template is not None
    assert template.text(chunk('a\nb"c é')) == 'a\\nb\\"c é'.encode()
    for other in (
        chunk("a", "stop"),
        delta("a"),
        chunk("a")[:-1],
        chunk("a") + b" ",
        chunk("\x01"),
    ):
        assert template.text(other) is None
    for odd in (
        b'{"text":"q","choices":[{"text":"q","finish_reason":null}]}',
        b'{"choices":[{"text":"q","text":"q","finish_reason":null}]}',
        b'{"choices":[{"text":"","finish_reason":null}]}',
        b'{"choices":[{"text":"q","finish_reason":"stop"}]}',
        b'{"choices":[{"text":"q","finish_reason":null}],"usage":{}}',
        b'{"choices":[{"text":"q"},{"text":"q"}]}',
    ):
        assert learned(odd, orjson.loads(odd)) is None
