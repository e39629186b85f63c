"""The check of streams finds what it is there to find."""

from __future__ import annotations

import json

import pytest

from tests.streams import check_stream, told


def events(*numbers: int, end: bool = True) -> list[str]:
    tokens = [json.dumps({"token": f" w{i}", "index": i}) for i in numbers]
    return [*tokens, json.dumps({"done": True}), "[DONE]"] if end else tokens


def openai(*numbers: int, chat: bool = False) -> list[str]:
    def choice(text: str, reason: str | None = None) -> str:
        shown = {"delta": {"content": text}} if chat else {"text": text}
        return json.dumps({"choices": [{**shown, "finish_reason": reason}]})

    return [*(choice(f" w{i}") for i in numbers), choice("", "length"), "[DONE]"]


def test_a_whole_stream_passes_in_every_form() -> None:
    for good in (events(*range(5)), openai(*range(5)), openai(*range(5), chat=True)):
        assert check_stream(good, 5).tokens == (0, 1, 2, 3, 4)
    several = [json.dumps({"token": "w0 w1"}), *events(2)]
    assert check_stream(several, 3).finished


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (events(0, 2, 3), "lost"),
        (events(0, 1, 1, 2, 3), "duplicated"),
        (events(0, 1, 2), "truncated"),
        (events(0, 1, 2, 3, 4), "beyond the end"),
        (events(1, 0, 2, 3), "out of order"),
        (events(0, 1, 2, 3, end=False), "unfinished"),
        ([*events(0, 1, 2, 3), "[DONE]"], "after the end"),
        ([*events(0, 1, end=False), '{"error": {"code": "engine_died"}}'], "errors"),
    ],
)
def test_everything_else_is_told(bad: list[str], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        check_stream(bad, 4)


def test_an_error_is_told_with_what_came_before() -> None:
    came = told([*events(0, 1, end=False), '{"error": {"code": "engine_died"}}'])
    assert (came.tokens, came.errors, came.finished) == ((0, 1), ("engine_died",), False)
