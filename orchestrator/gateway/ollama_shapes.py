"""What clients of Ollama's API get of an engine's events. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from orchestrator.gateway import answers
from orchestrator.gateway.guard import Guard
from orchestrator.gateway.ollama_answers import Times, Told, line
from orchestrator.gateway.shapes import End


class OllamaAnswer:
    """A stream of lines, or one object. `now` gives seconds since the epoch."""

    __slots__ = ("_now", "_told", "_values", "stream")
    keeps_text = True
    passes = False

    def __init__(self, told: Told, stream: bool, now: Callable[[], float]) -> None:
        self._told, self.stream, self._now = told, stream, now
        self._values: list[dict[str, Any]] = []

    def text(self, inside: bytes, payload: bytes) -> bytes:
        if not self.stream or not inside:
            return b""
        return self._piece(str(orjson.loads(b'"' + inside + b'"')))

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        if value["choices"]:
            self._values.append(value)
        return self._piece(text) if self.stream and text else b""

    def closing(self, guard: Guard, end: End) -> bytes:
        counts = guard.usage or answers.usage(end.prompt_tokens, end.tokens)
        whole = answers.whole_answer(self._values, counts, guard.full_text)
        calls = whole["choices"][0].get("message", {}).get("tool_calls") or []
        total = end.waited + end.seconds
        first = total if end.ttft is None else max(end.waited, min(end.ttft, total))
        if end.tokens and first >= total:  # all of it came at once: clients divide by the rest
            first = end.waited + (total - end.waited) / (1 + end.tokens)
        times = Times(end.waited, first, total)
        said = "" if self.stream else guard.full_text
        reason = guard.finish_reason or "stop"
        return line(self._told.last(said, calls, reason, counts, times, self._now()))

    def _piece(self, text: str) -> bytes:
        return line(self._told.piece(text, self._now()))


class OllamaLoaded:
    """The answer to a request that generates nothing."""

    __slots__ = ("_now", "_reason", "_told", "stream")
    keeps_text = False
    passes = False

    def __init__(self, told: Told, reason: str, stream: bool, now: Callable[[], float]) -> None:
        self._told, self._reason, self.stream, self._now = told, reason, stream, now

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        return b""

    def closing(self, guard: Guard, end: End) -> bytes:
        return line(self._told.loaded(self._reason, self._now()))
