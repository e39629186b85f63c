"""However bytes are split, the same events; whatever an engine sends, one legal terminal."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import EngineError, UpstreamBroken, UpstreamInvalid
from orchestrator.gateway.sse import SseReader, event
from orchestrator.gateway.stream import StreamGuard


def read(data: bytes, cuts: list[int]) -> list[str]:
    reader = SseReader()
    points = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found: list[str] = []
    for start, end in pairwise(points):
        found += reader.feed(data[start:end])
    return found + reader.feed(b"", final=True)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_separates_events(newline: str) -> None:
    text = newline.join([": ping", "event: x", "data: a", "data:b", "", "data: c", "", ""])
    assert read(text.encode(), []) == ["a\nb", "c"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text().filter(lambda t: "\r" not in t and "\n" not in t), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=30),
    st.sampled_from(["\n", "\r\n"]),
)
def test_splits_do_not_matter(texts: list[str], cuts: list[int], newline: str) -> None:
    data = "".join(f"data: {text}{newline}{newline}" for text in texts).encode("utf-8")
    assert read(data, cuts) == texts


@given(st.text())
def test_what_we_write_is_one_event_whatever_the_text(text: str) -> None:
    sent = event({"token": text})
    assert [json.loads(payload) for payload in read(sent, [])] == [{"token": text}]
    assert sent.count(b"\n\n") == 1


def test_bytes_that_are_not_utf8_and_endless_events_are_refused() -> None:
    with pytest.raises(UpstreamInvalid):
        SseReader().feed(b"data: \xff\n\n")
    with pytest.raises(UpstreamInvalid):
        SseReader().feed(b"data: " + b"x" * (2 << 20))


def chunk(text: str, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


GOOD = [chunk("a"), chunk("b", "stop"), "[DONE]"]


def run(payloads: list[str]) -> tuple[str, StreamGuard]:
    guard, text = StreamGuard(), ""
    for payload in payloads:
        got = guard.feed(payload)
        text += got.text if got else ""
    if not guard.done:
        guard.close()
    return text, guard


def test_a_good_stream_and_one_without_done_are_complete() -> None:
    for payloads in (GOOD, GOOD[:-1]):
        text, guard = run(payloads)
        assert (text, guard.finish_reason, guard.done) == ("ab", "stop", True)


@pytest.mark.parametrize(
    ("payloads", "error"),
    [
        ([chunk("a"), "[DONE]"], UpstreamBroken),
        ([chunk("a")], UpstreamBroken),
        ([], EngineError),
        (["[DONE]"], EngineError),
        ([chunk("a"), '{"error": {"message": "dead"}}', "[DONE]"], UpstreamBroken),
        (["<html>"], UpstreamInvalid),
        (["[1]"], UpstreamInvalid),
        (['{"object": "x"}'], UpstreamInvalid),
        (['{"choices": [1]}'], UpstreamInvalid),
    ],
)
def test_everything_else_is_an_error(payloads: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        run(payloads)


PAYLOADS = st.lists(
    st.one_of(
        st.just("[DONE]"),
        st.builds(chunk, st.text(max_size=5), st.sampled_from([None, "stop", "length"])),
        st.just('{"error": "x"}'),
        st.just('{"choices": [], "usage": {"completion_tokens": 3}}'),
        st.text(max_size=5),
    ),
    max_size=12,
)


@settings(max_examples=500, deadline=None)
@given(PAYLOADS)
def test_success_is_never_claimed_without_a_finish_reason(payloads: list[str]) -> None:
    try:
        _, guard = run(payloads)
    except (EngineError, UpstreamBroken, UpstreamInvalid):
        return
    seen = payloads[: payloads.index("[DONE]")] if "[DONE]" in payloads else payloads
    assert any('"finish_reason": "' in payload for payload in seen)
    assert guard.finish_reason
