"""Exactly one terminal: what an engine's stream may be, and what it says. Pure: bytes in and out.

A good stream is chunks, one of them with a finish_reason, then `[DONE]` or the end. Everything else
(`[DONE]` with nothing finished, an error event, the end in the middle, what is not JSON) is an
error, which the caller tells the client once. Once the answer is complete nothing can spoil it:
what an engine does after its finish_reason is not the client's concern.
"""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from orchestrator.errors import EngineError, RequestError, UpstreamBroken, UpstreamInvalid
from orchestrator.gateway.sse import SseReader
from orchestrator.gateway.template import BACKSLASH, Learner


class Shape(Protocol):
    """What becomes of the events: bytes for the client, as they come.

    `passes`: events like the last chunk pass as they are, and `text` need not be asked.
    """

    passes: bool

    def text(self, inside: bytes, payload: bytes) -> bytes:
        """An event like the last chunk but for its text, `inside` a JSON string's quotes."""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        """Any other event: as it came, parsed, and the text that it adds."""


class Guard(Protocol):
    """Follows one answer of an engine, to its one end. `kind` is the media type that it reads."""

    kind: bytes
    begun: bool
    done: bool
    error: RequestError | None
    events: int
    pieces: int
    finish_reason: str | None
    usage: dict[str, Any] | None

    @property
    def over(self) -> bool:
        """Whether nothing can change any more."""

    @property
    def full_text(self) -> str:
        """All the text so far, where it was kept."""

    def feed(self, data: bytes) -> bytes:
        """What the client may be sent of `data`; afterwards `done` or `error` may be set."""

    def chunk(self, data: bytes) -> bytes | None:
        """The same for a whole chunk of HTTP, framing included, where that is known at a glance;
        else None, and nothing has happened. What passes as it is comes back with its framing."""

    def end(self) -> None:
        """The engine ended its answer in order, whatever that was."""

    def broke(self, error: RequestError) -> None:
        """The engine's connection broke, or it stalled: `error` says how."""


class StreamGuard:
    """Follows one stream of one choice. `keep` collects its text in `inside`, as JSON has it."""

    __slots__ = (
        "_keep", "_learner", "_reader", "_shape", "begun", "done", "error", "events",
        "finish_reason", "inside", "pieces", "usage",
    )  # fmt: skip
    kind = b"text/event-stream"

    def __init__(self, shape: Shape, keep: bool = True) -> None:
        self._shape, self._keep = shape, keep
        self._reader, self._learner = SseReader(), Learner()
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.error: RequestError | None = None
        self.done = self.begun = False
        self.events = self.pieces = 0
        self.inside: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """What the client may be sent of `data`; afterwards `done` or `error` may be set."""
        shape, learner = self._shape, self._learner
        template = learner.template
        if template is not None and self._reader.idle and not self.done and self.error is None:
            inside = template.event_text(data)
            if inside is not None:  # the usual read: one more event like the one before
                learner.misses = 0
                self.events += 1
                if inside:
                    self._piece(inside)
                return data if shape.passes else shape.text(inside, data[6:-2])
        out: list[bytes] = []
        for payload in self._reader.feed(data):
            if self.done or self.error is not None:
                break
            self.events += 1
            template = learner.template
            inside = None if template is None else template.text(payload)
            if inside is None:
                piece = self._look(payload)
            else:
                learner.misses = 0
                if inside:
                    self._piece(inside)
                piece = shape.text(inside, payload)
            if piece:
                out.append(piece)
        if self._reader.endless and not self.over:
            self._fail(UpstreamInvalid("the engine sent an event without end"))
        return out[0] if len(out) == 1 else b"".join(out)

    def chunk(self, data: bytes) -> bytes | None:
        """See `Guard`: one more event like the one before, alone in its chunk."""
        learner = self._learner
        template = learner.template
        if template is None or not self._reader.idle or self.done or self.error is not None:
            return None
        inside = template.chunk_text(data)
        if inside is None:
            return None
        learner.misses = 0
        self.events += 1
        if inside:
            self.pieces += 1
            if self._keep:
                self.inside.append(inside)
        if self._shape.passes:
            return data
        return self._shape.text(inside, template.prefix + inside + template.suffix)

    def end(self) -> None:
        """The engine ended its answer in order, whatever that was."""
        if self.over:
            return
        if self._reader.half_frame:
            told = "the engine's connection ended in the middle of an event"
            self._fail(UpstreamBroken(told))
        else:
            self._close()

    def broke(self, error: RequestError) -> None:
        """The engine's connection broke, or it stalled: `error` says how."""
        if not self.over:
            self._fail(error)

    @property
    def over(self) -> bool:
        """Whether nothing can change any more."""
        return self.done or self.error is not None

    @property
    def full_text(self) -> str:
        """All the text so far, where it was kept."""
        inside = b"".join(self.inside)
        return str(orjson.loads(b'"' + inside + b'"')) if BACKSLASH in inside else inside.decode()

    def _look(self, payload: bytes) -> bytes:
        if payload[:1] != b"{" and payload.strip() == b"[DONE]":
            self._close()
            return b""
        try:
            value = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return self._fail(UpstreamInvalid("the engine sent an event that is not JSON"))
        if not isinstance(value, dict):
            return self._fail(UpstreamInvalid("the engine sent an event that is not an object"))
        if "error" in value:
            told = f"the engine reported an error: {message_of(value['error'])}"
            return self._fail(UpstreamBroken(told))
        choices = value.get("choices")
        if not isinstance(choices, list):
            return self._fail(UpstreamInvalid("the engine sent an event without choices"))
        for choice in choices:
            if not isinstance(choice, dict):
                return self._fail(UpstreamInvalid("the engine sent a choice that is not an object"))
        self.begun = True
        usage = value.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        text = self._text(choices) if choices else ""
        if text:
            self._piece(orjson.dumps(text)[1:-1] if self._keep else b"")
        if text and self.finish_reason is None:
            self._learner.learn(payload, value)
        else:
            self._learner.template = None
        return self._shape.chunk(payload, value, text)

    def _text(self, choices: list[dict[str, Any]]) -> str:
        text = ""
        for choice in choices:
            if (reason := choice.get("finish_reason")) is not None:
                self.finish_reason = str(reason)
            delta = choice.get("delta")
            part = delta.get("content") if isinstance(delta, dict) else choice.get("text")
            if part and isinstance(part, str):
                text = text + part if text else part
        return text

    def _piece(self, inside: bytes) -> None:
        self.pieces += 1
        if self._keep:
            self.inside.append(inside)

    def _close(self) -> None:
        if not self.begun:
            told = "the engine answered with an empty stream: it failed on this request"
            self._fail(EngineError(told))
        elif self.finish_reason is None:
            told = "the engine ended the stream before its answer was complete"
            self._fail(UpstreamBroken(told))
        else:
            self.done = True

    def _fail(self, error: RequestError) -> bytes:
        if self.finish_reason is None:
            self.error = error
        else:
            self.done = True
        return b""


def message_of(error: Any) -> str:
    """The engine's own words, cut, on one line."""
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text).split())[:200]
