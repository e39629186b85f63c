"""What Ollama's clients are answered: lines of JSON, one per piece, the last with the counts.

Durations are whole nanoseconds there, and times are RFC 3339 in UTC. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import EngineRoomError

CONTENT_TYPE = "application/x-ndjson"
_NS = 1_000_000_000


@dataclass(frozen=True)
class Times:
    """Seconds of one request: waiting for a place and a load, until its first token, in all."""

    waited: float
    first: float
    total: float


def line(value: dict[str, Any]) -> bytes:
    """One line; JSON escapes every line break."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class Told:
    """Makes the answers to one request. `now` is seconds since the epoch."""

    def __init__(self, model: str, chat: bool) -> None:
        self._model, self._chat = model, chat

    def piece(self, text: str, now: float) -> dict[str, Any]:
        """A piece of the answer."""
        return {**self._head(now), **self._text(text), "done": False}

    def last(
        self,
        text: str,
        calls: list[dict[str, Any]],
        reason: str,
        counts: dict[str, int],
        times: Times,
        now: float,
    ) -> dict[str, Any]:
        """The end: in a stream `text` is empty, in a plain answer it is all of it.

        `calls` are OpenAI's tool calls; `counts` is a usage object.
        """
        body = self._text(text)
        if calls and self._chat:
            body["message"]["tool_calls"] = [_call(each) for each in calls]
        return {
            **self._head(now),
            **body,
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": int(times.total * _NS),
            "load_duration": int(times.waited * _NS),
            "prompt_eval_count": counts.get("prompt_tokens", 0),
            "prompt_eval_duration": int(max(0.0, times.first - times.waited) * _NS),
            "eval_count": counts.get("completion_tokens", 0),
            "eval_duration": int(max(0.0, times.total - times.first) * _NS),
        }

    def loaded(self, reason: str, now: float) -> dict[str, Any]:
        """The answer to a request that generates nothing; `reason` is "load" or "unload"."""
        return {**self._head(now), **self._text(""), "done": True, "done_reason": reason}

    def _head(self, now: float) -> dict[str, Any]:
        return {"model": self._model, "created_at": stamp(now)}

    def _text(self, text: str) -> dict[str, Any]:
        if self._chat:
            return {"message": {"role": "assistant", "content": text}}
        return {"response": text}


def failure(error: EngineRoomError) -> dict[str, Any]:
    """An error, as a body or as the last line of a stream that had begun."""
    return {"error": error.message}


def stamp(seconds: float) -> str:
    """A time as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's call as Ollama has it: the arguments are an object."""
    made = call.get("function") or {}
    try:
        arguments = json.loads(made.get("arguments") or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):  # the engine's own text, where it is no object
        arguments = {"arguments": made.get("arguments")}
    return {"function": {"name": made.get("name", ""), "arguments": arguments}}
