"""Answers that are one JSON object: nothing is generated, so there is no stream to follow. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from orchestrator.errors import RequestError, UpstreamInvalid
from orchestrator.gateway import answers
from orchestrator.gateway.guard import Guard, Shape
from orchestrator.gateway.shapes import End

_LIMIT = 64 << 20  # bytes of an answer


class WholeGuard:
    """Takes a whole body; it has what a `StreamGuard` has."""

    __slots__ = ("_parts", "_shape", "_size", "begun", "done", "error", "events", "finish_reason",
                 "pieces", "usage")  # fmt: skip
    kind = b"application/json"

    def __init__(self, shape: Shape, keep: bool) -> None:
        self._shape = shape
        self._parts: list[bytes] = []
        self._size = 0
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = answers.usage(0, 0)  # nothing is generated
        self.error: RequestError | None = None
        self.done = self.begun = False
        self.events = self.pieces = 0

    def feed(self, data: bytes) -> bytes:
        """Keep it."""
        self._size += len(data)
        if self._size > _LIMIT:
            self.error = UpstreamInvalid("the engine's answer has no end")
        else:
            self._parts.append(data)
        return b""

    def chunk(self, data: bytes) -> bytes | None:
        """Nothing is known at a glance."""
        return None

    def end(self) -> None:
        """That was all of it."""
        if self.over:
            return
        body = b"".join(self._parts)
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            self.error = UpstreamInvalid("the engine's answer is not a JSON object")
            return
        self.usage = answers.usage(_read(value), 0)
        try:
            self._shape.chunk(body, value, "")
        except UpstreamInvalid as error:
            self.error = error
        else:
            self.done = True

    def broke(self, error: RequestError) -> None:
        """The engine's connection broke, or it stalled: `error` says how."""
        if not self.over:
            self.error = error

    @property
    def over(self) -> bool:
        """Whether nothing can change any more."""
        return self.done or self.error is not None

    @property
    def full_text(self) -> str:
        """There is none."""
        return ""


def _read(value: dict[str, Any]) -> int:
    """Tokens that the engine says it has read; nothing is generated."""
    usage = value.get("usage")
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
    return read if type(read) is int and read >= 0 else 0


class WholePassing:
    """The object as it came, with the model's name as it was asked for."""

    __slots__ = ("_name", "_value")
    stream = False
    keeps_text = False
    passes = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._value: dict[str, Any] = {}

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        self._value = {**value, "model": self._name} if "model" in value else value
        return b""

    def closing(self, guard: Guard, end: End) -> bytes:
        return orjson.dumps(self._value)
