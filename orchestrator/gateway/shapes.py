"""What the clients of each path get of an engine's events, and of their end. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import orjson

from orchestrator.gateway import answers
from orchestrator.gateway.generate import result
from orchestrator.gateway.guard import Guard, Shape
from orchestrator.gateway.sse import DONE, LF, event
from orchestrator.gateway.template import Template, learned


class End(NamedTuple):
    """What is known when an answer is complete: tokens as they were counted, times in seconds."""

    prompt_tokens: int
    tokens: int
    seconds: float
    ttft: float | None
    waited: float = 0.0


class Answer(Shape, Protocol):
    """An answer in the making. `stream`: its parts are sent as they come."""

    stream: bool
    keeps_text: bool

    def closing(self, guard: Guard, end: End) -> bytes:
        """The last events of a stream, its terminal included, or the whole body."""


class Passing:
    """The `/v1` streams: the engine's events, byte for byte where they name the model as asked.

    Chunks without choices are the engine's usage, which is told at the end if it was asked for.
    """

    __slots__ = ("_last", "_name", "_ours", "_usage", "passes")
    stream = True
    keeps_text = False

    def __init__(self, name: str, usage: bool) -> None:
        self._name, self._usage = name, usage
        self.passes = True
        self._ours: Template | None = None
        self._last: dict[str, Any] = {}

    def text(self, inside: bytes, payload: bytes) -> bytes:
        if self.passes:
            return b"data: " + payload + b"\n\n"
        if self._ours is not None:
            return b"data: " + self._ours.prefix + inside + self._ours.suffix + b"\n\n"
        return _event({**orjson.loads(payload), "model": self._name})

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        if not value["choices"]:
            return b""
        self.passes = value.get("model") == self._name and LF not in payload
        if self.passes:
            self._last = value
            return b"data: " + payload + b"\n\n"
        self._last = value = {**value, "model": self._name}
        ours = orjson.dumps(value)
        self._ours = learned(ours, value)
        return b"data: " + ours + b"\n\n"

    def closing(self, guard: Guard, end: End) -> bytes:
        if not self._usage:
            return DONE
        return event(answers.usage_chunk(self._last, _counts(guard, end))) + DONE


class TokenStream:
    """`/generate_stream`: each piece of text with its number, then one event with all of it."""

    __slots__ = ("_count",)
    stream = True
    keeps_text = True
    passes = False

    def __init__(self) -> None:
        self._count = 0

    def text(self, inside: bytes, payload: bytes) -> bytes:
        if not inside:
            return b""
        self._count += 1
        return b'data: {"token": "%b", "index": %d}\n\n' % (inside, self._count - 1)

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        return self.text(orjson.dumps(text)[1:-1], payload)

    def closing(self, guard: Guard, end: End) -> bytes:
        ttft = {"ttft": round(end.seconds if end.ttft is None else end.ttft, 6)}
        reason = guard.finish_reason or "stop"
        last = result(guard.full_text, end.tokens, end.seconds, reason, **ttft)
        return event({"done": True, **last}) + DONE


class WholeText:
    """`/generate`."""

    __slots__ = ("_name",)
    stream = False
    keeps_text = True
    passes = False

    def __init__(self, name: str) -> None:
        self._name = name

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        return b""

    def closing(self, guard: Guard, end: End) -> bytes:
        reason = guard.finish_reason or "stop"
        name = {"model": self._name}
        return orjson.dumps(result(guard.full_text, end.tokens, end.seconds, reason, **name))


class WholeAnswer:
    """The `/v1` calls without `stream`: events that say more than their text are kept."""

    __slots__ = ("_name", "_values")
    stream = False
    keeps_text = True
    passes = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: list[dict[str, Any]] = []

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        if value["choices"]:
            self._values.append(value)
        return b""

    def closing(self, guard: Guard, end: End) -> bytes:
        whole = answers.whole_answer(self._values, _counts(guard, end), guard.full_text)
        whole["model"] = self._name
        return orjson.dumps(whole)


def _counts(guard: Guard, end: End) -> dict[str, Any]:
    return guard.usage or answers.usage(end.prompt_tokens, end.tokens)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
