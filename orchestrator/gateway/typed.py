"""Streams whose events name their type, as `/v1/messages` and `/v1/responses` have them. Pure.

They have no `[DONE]`: an event of a certain type ends them, another one breaks them. Whatever else
happens (the end in the middle, what is not JSON, an event without a type) is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from orchestrator.errors import EngineError, RequestError, UpstreamBroken, UpstreamInvalid
from orchestrator.gateway import answers
from orchestrator.gateway.guard import Shape, message_of
from orchestrator.gateway.sse import SseReader


@dataclass(frozen=True)
class Dialect:
    """The types of the events that end a stream, that break it, and that carry a piece of it."""

    ends: frozenset[str]
    breaks: frozenset[str]
    pieces: frozenset[str]


MESSAGES = Dialect(
    frozenset({"message_stop"}), frozenset({"error"}), frozenset({"content_block_delta"})
)
RESPONSES = Dialect(
    frozenset({"response.completed", "response.incomplete"}),
    frozenset({"error", "response.failed"}),
    frozenset({"response.output_text.delta", "response.function_call_arguments.delta"}),
)


class TypedGuard:
    """Follows one stream; it has what a `StreamGuard` has."""

    __slots__ = (
        "_dialect", "_reader", "_shape", "begun", "done", "error", "events", "finish_reason",
        "pieces", "usage",
    )  # fmt: skip
    kind = b"text/event-stream"

    def __init__(self, shape: Shape, dialect: Dialect) -> None:
        self._shape, self._dialect = shape, dialect
        self._reader = SseReader()
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.error: RequestError | None = None
        self.done = self.begun = False
        self.events = self.pieces = 0

    def feed(self, data: bytes) -> bytes:
        """What the client may be sent of `data`; afterwards `done` or `error` may be set."""
        out: list[bytes] = []
        for payload in self._reader.feed(data):
            if self.over:
                break
            self.events += 1
            out.append(self._look(payload))
        if self._reader.endless and not self.over:
            self.error = UpstreamInvalid("the engine sent an event without end")
        return b"".join(out)

    def chunk(self, data: bytes) -> bytes | None:
        """Nothing is known at a glance."""
        return None

    def end(self) -> None:
        """The engine ended its answer in order, whatever that was."""
        if self.over:
            return
        if not self.begun:
            told = "the engine answered with an empty stream: it failed on this request"
            self.error = EngineError(told)
        else:
            told = "the engine ended the stream before its answer was complete"
            self.error = UpstreamBroken(told)

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
        """Nobody asks: these engines count their tokens."""
        return ""

    def _look(self, payload: bytes) -> bytes:
        if payload.strip() == b"[DONE]":  # some engines send one after the end of their dialect
            return b""
        try:
            value = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self.error = UpstreamInvalid("the engine sent an event that is not JSON")
            return b""
        if not isinstance(value, dict):
            self.error = UpstreamInvalid("the engine sent an event that is not an object")
            return b""
        kind = value.get("type")
        if kind in self._dialect.breaks or (kind is None and "error" in value):
            self.error = UpstreamBroken(f"the engine reported an error: {_told(value)}")
            return b""
        if not isinstance(kind, str):
            self.error = UpstreamInvalid("the engine sent an event without a type")
            return b""
        self.begun = True
        self.pieces += kind in self._dialect.pieces
        self._count(value)
        try:
            out = self._shape.chunk(payload, value, "")
        except RequestError as error:
            self.error = error
            return b""
        if kind in self._dialect.ends:
            self.finish_reason = kind
            self.done = True
        return out

    def _count(self, value: dict[str, Any]) -> None:
        """Take the usage of wherever it is told: the last word counts."""
        for holder in (value, value.get("message"), value.get("response")):
            told = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(told, dict):
                before = self.usage or answers.usage(0, 0)
                asked = told.get("input_tokens", before["prompt_tokens"])
                if isinstance(told.get("cache_read_input_tokens"), int) and "input_tokens" in told:
                    asked += told["cache_read_input_tokens"]
                said = told.get("output_tokens", before["completion_tokens"])
                if isinstance(asked, int) and isinstance(said, int):
                    self.usage = answers.usage(asked, said)


def _told(value: dict[str, Any]) -> str:
    inner = value.get("response")
    holder = inner if isinstance(inner, dict) and inner.get("error") else value
    return message_of(holder.get("error") or holder)
