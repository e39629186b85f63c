"""Streams whose events name their type: one terminal however they are cut, and whole answers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UpstreamBroken
from orchestrator.gateway.plain import WholeGuard, WholePassing
from orchestrator.gateway.shapes import End
from orchestrator.gateway.typed import MESSAGES, TypedGuard
from orchestrator.gateway.typed_shapes import TypedPassing, WholeMessage

END = End(0, 0, 0.0, None)


def events(*texts: str, ends: str = "message_stop") -> bytes:
    usage = {"input_tokens": 3, "output_tokens": 0}
    told: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "model": "inner", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    for text in texts:
        delta = {"type": "text_delta", "text": text}
        told.append({"type": "content_block_delta", "index": 0, "delta": delta})
    told.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                 "usage": {"output_tokens": len(texts)}})  # fmt: skip
    told.append({"type": ends, "error": {"message": "no"}} if ends == "error" else {"type": ends})
    lines = (b"event: " + x["type"].encode() + b"\ndata: " + orjson.dumps(x) for x in told)
    return b"\n\n".join(lines) + b"\n\n"


def fed(guard: TypedGuard, data: bytes, cuts: list[int]) -> bytes:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    out = b"".join(guard.feed(data[a:b]) for a, b in pairwise(places))
    guard.end()
    return out


@given(st.lists(st.text(max_size=9), max_size=5), st.lists(st.integers(0, 4000), max_size=9))
def test_however_it_is_cut_it_says_the_same(texts: list[str], cuts: list[int]) -> None:
    data = events(*texts)
    whole, cut = (TypedGuard(TypedPassing("asked"), MESSAGES) for _ in range(2))
    assert fed(whole, data, []) == fed(cut, data, cuts)
    assert cut.done
    assert cut.error is None
    assert cut.usage == {"prompt_tokens": 3, "completion_tokens": len(texts),
                         "total_tokens": 3 + len(texts)}  # fmt: skip
    shape = WholeMessage("asked")
    guard = TypedGuard(shape, MESSAGES)
    assert fed(guard, data, cuts) == b""
    answer = orjson.loads(shape.closing(guard, END))
    assert answer["content"] == [{"type": "text", "text": "".join(texts)}]
    assert (answer["model"], answer["stop_reason"]) == ("asked", "end_turn")


@given(st.integers(1, 400))
def test_what_does_not_end_in_order_is_never_done(cut: int) -> None:
    data = events("a", "b")
    short = data[: -1 - cut % (len(data) - 1)]
    if b"message_stop" in short.rpartition(b"\n\n")[0]:
        return
    guard = TypedGuard(TypedPassing("m"), MESSAGES)
    fed(guard, short, [])
    assert not guard.done
    assert guard.error is not None


def test_an_error_event_breaks_it_and_is_not_passed() -> None:
    guard = TypedGuard(TypedPassing("m"), MESSAGES)
    assert b"error" not in fed(guard, events("a", ends="error"), [])
    assert isinstance(guard.error, UpstreamBroken)


def test_a_whole_answer_is_an_object_under_the_asked_name() -> None:
    shape = WholePassing("asked")
    guard = WholeGuard(shape, False)
    guard.feed(b'{"model": "in')
    guard.feed(b'ner", "n": 1}')
    guard.end()
    assert guard.done
    assert orjson.loads(shape.closing(guard, END)) == {"model": "asked", "n": 1}
    broken = WholeGuard(shape, False)
    broken.feed(b"[1]")
    broken.end()
    assert broken.error is not None
