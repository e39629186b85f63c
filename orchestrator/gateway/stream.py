"""Exactly one terminal: what an engine's stream may be, and what it says. Pure.

A good stream is chunks, one of them with a finish_reason, then `[DONE]` or the end. Everything else
(`[DONE]` with nothing finished, an error event, the end in the middle, what is not JSON) raises,
and the caller tells the client once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import EngineError, UpstreamBroken, UpstreamInvalid


@dataclass(frozen=True)
class Chunk:
    """One event of an engine: its JSON text, parsed, and the text that it adds."""

    raw: str
    value: dict[str, Any]
    text: str


class StreamGuard:
    """Follows one stream of one choice."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.done = False
        self._begun = False

    def feed(self, payload: str) -> Chunk | None:
        """The chunk in a payload; None for `[DONE]` and whatever comes after it."""
        if self.done:
            return None
        if payload.strip() == "[DONE]":
            self.close()
            return None
        try:
            value = json.loads(payload)
        except ValueError as error:
            raise UpstreamInvalid("the engine sent an event that is not JSON") from error
        if not isinstance(value, dict):
            raise UpstreamInvalid("the engine sent an event that is not an object")
        if "error" in value:
            raise UpstreamBroken(f"the engine reported an error: {_message(value['error'])}")
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        self._begun = True
        return Chunk(payload, value, self._choice(value))

    def close(self) -> None:
        """The stream ended in order; raises unless its answer had finished."""
        if not self._begun:
            raise EngineError("the engine answered with an empty stream: it failed on this request")
        if self.finish_reason is None:
            raise UpstreamBroken("the engine ended the stream before its answer was complete")
        self.done = True

    def _choice(self, value: dict[str, Any]) -> str:
        choices = value.get("choices")
        if not isinstance(choices, list):
            raise UpstreamInvalid("the engine sent an event without choices")
        text = ""
        for choice in choices:
            if not isinstance(choice, dict):
                raise UpstreamInvalid("the engine sent a choice that is not an object")
            if choice.get("finish_reason") is not None:
                self.finish_reason = str(choice["finish_reason"])
            delta = choice.get("delta")
            part = delta.get("content") if isinstance(delta, dict) else choice.get("text")
            text += part if isinstance(part, str) else ""
        return text


def _message(error: Any) -> str:
    """The engine's own words, cut, on one line."""
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text).split())[:200]
