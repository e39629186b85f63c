"""What the events of a stream have in common around the one text that changes. Pure.

Engines send the same JSON for every token but for a few bytes. A template is learned from an event
that was parsed, and proven: with another text put where it says, the event parses to the same
but for that text. Whatever then has the template's beginning and end, and in between the inside of
a JSON string, needs no parser to be known: it says what the first one said, with this text.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from orchestrator.gateway.sse import LF

# The inside of a JSON string without \u escapes; those are left to the parser.
_INSIDE = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\["\\/bfnrt][^"\\\x00-\x1f]*+)*+')
_OPENINGS = {"content": re.compile(rb'"content":\s*"'), "text": re.compile(rb'"text":\s*"')}
_SIZES = {len(b"%x\r\n\r\n" % n) + n: b"%x\r\n" % n for n in range(1, 2048)}
"""By the bytes of a whole chunk: the line that it begins with, as the usual servers write it."""
BACKSLASH = ord("\\")
_EVER = 8  # misses in a row after which a stream is not worth learning any more


class Template:
    """Bytes before and after the text of a payload."""

    __slots__ = ("_before", "_begin", "_behind", "_closing", "_end", "prefix", "suffix")

    def __init__(self, prefix: bytes, suffix: bytes) -> None:
        self.prefix, self.suffix = prefix, suffix
        self._begin, self._end = len(prefix), -len(suffix)
        self._before, self._behind = b"data: " + prefix, suffix + b"\n\n"
        self._closing = self._behind + b"\r\n"

    def text(self, payload: bytes) -> bytes | None:
        """The inside of the JSON string in `payload`, None where it is not of this kind."""
        if not payload.startswith(self.prefix) or not payload.endswith(self.suffix):
            return None
        if len(payload) < self._begin - self._end:
            return None
        found = payload[self._begin : self._end]
        if _INSIDE.fullmatch(found) is None or not (found.isascii() or is_utf8(found)):
            return None
        return found

    def event_text(self, data: bytes) -> bytes | None:
        """The same of a whole event; None where `data` is anything but one event of this kind.

        Neither a template nor the inside of a string has line breaks.
        """
        if not data.startswith(self._before) or not data.endswith(self._behind):
            return None
        if len(data) < self._begin - self._end + 8:
            return None
        found = data[self._begin + 6 : self._end - 2]
        if _INSIDE.fullmatch(found) is None or not (found.isascii() or is_utf8(found)):
            return None
        return found

    def chunk_text(self, data: bytes) -> bytes | None:
        """The same of a chunk of HTTP, its framing included, that is one such event and no more."""
        size = _SIZES.get(len(data))
        if size is None or not data.startswith(size):
            return None
        begin = len(size)
        if not data.startswith(self._before, begin) or not data.endswith(self._closing):
            return None
        begin += self._begin + 6
        if len(data) < begin - self._end + 4:
            return None
        found = data[begin : self._end - 4]
        if _INSIDE.fullmatch(found) is None or not (found.isascii() or is_utf8(found)):
            return None
        return found


class Learner:
    """The template of one stream: what the last event that had to be parsed gave.

    `misses` counts those since the last that did not have to be.
    """

    __slots__ = ("misses", "template")

    def __init__(self) -> None:
        self.template: Template | None = None
        self.misses = 0

    def learn(self, payload: bytes, value: dict[str, Any]) -> None:
        """Take the template of an event that was parsed, in place of the one before."""
        self.misses += 1
        self.template = learned(payload, value) if self.misses <= _EVER else None


def learned(payload: bytes, value: dict[str, Any]) -> Template | None:
    """The template of a payload and what it parses to; None where it has none.

    Only events that say nothing but their text have one: no error, no usage, nothing finished.
    """
    choices = value.get("choices")
    if (
        LF in payload
        or "error" in value
        or isinstance(value.get("usage"), dict)
        or not isinstance(choices, list)
    ):
        return None
    if len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    choice = choices[0]
    delta = choice.get("delta")
    holder, field = (delta, "content") if isinstance(delta, dict) else (choice, "text")
    text = holder.get(field)
    if not text or not isinstance(text, str) or choice.get("finish_reason") is not None:
        return None
    if holder.get("tool_calls") or (begin := _OPENINGS[field].search(payload)) is None:
        return None
    end = _INSIDE.match(payload, begin.end())
    if end is None or payload[end.end() : end.end() + 1] != b'"':
        return None
    prefix, suffix = payload[: begin.end()], payload[end.end() :]
    other = "a" if text != "a" else "b"
    try:
        again = orjson.loads(prefix + other.encode() + suffix)
    except orjson.JSONDecodeError:
        return None
    holder[field] = other
    proven = again == value
    holder[field] = text
    return Template(prefix, suffix) if proven else None


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
