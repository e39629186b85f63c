"""What a server's events and plain answers say. Pure.

Three dialects: `completions` and `chat` of OpenAI, and Engine Room's `generate`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

DIALECTS = ("completions", "chat", "generate")


class Illegible(ValueError):
    """Something that is no answer of the dialect."""


@dataclass(slots=True)
class Said:
    """What one event, or one plain answer, said."""

    text: bool = False  # it carried output
    finished: bool = False
    tokens: int | None = None
    prompt_tokens: int | None = None
    error: str = ""


def read_event(dialect: str, payload: bytes) -> Said:
    """One event of a stream. Raises Illegible."""
    if payload == b"[DONE]":
        return Said()
    value = _object(payload)
    if value.get("error"):
        return Said(error=error_words(value))
    if dialect == "generate":
        if value.get("done"):
            return Said(finished=True, tokens=_count(value, "token_count"))
        return Said(text=bool(value.get("token")))
    said = _usage(value)
    try:
        for choice in value["choices"]:
            said.finished |= choice.get("finish_reason") is not None
            said.text |= _has_text(choice.get("delta") or {} if dialect == "chat" else choice)
    except (KeyError, TypeError, AttributeError):
        raise Illegible("an event without choices") from None
    return said


def read_answer(dialect: str, body: bytes) -> Said:
    """A plain answer. Raises Illegible."""
    value = _object(body)
    if value.get("error"):
        return Said(error=error_words(value))
    if dialect == "generate":
        if "generated_text" not in value:
            raise Illegible("an answer without generated_text")
        return Said(text=True, finished=True, tokens=_count(value, "token_count"))
    if not isinstance(value.get("choices"), list) or not value["choices"]:
        raise Illegible("an answer without choices")
    said = _usage(value)
    said.text = said.finished = True
    return said


def error_words(value: dict[str, Any]) -> str:
    """The sentence of an error object, in any of the shapes that servers use."""
    error = value.get("error") or value.get("detail") or value.get("message") or value
    if isinstance(error, dict):
        error = error.get("message") or error
    return str(error)[:300]


def _has_text(part: dict[str, Any]) -> bool:
    return bool(
        part.get("content")
        or part.get("text")
        or part.get("reasoning_content")
        or part.get("reasoning")
        or part.get("tool_calls")
    )


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except ValueError:
        raise Illegible("no JSON") from None
    if not isinstance(value, dict):
        raise Illegible("no JSON object")
    return value


def _usage(value: dict[str, Any]) -> Said:
    usage = value.get("usage")
    if not isinstance(usage, dict):
        return Said()
    return Said(
        tokens=_count(usage, "completion_tokens"), prompt_tokens=_count(usage, "prompt_tokens")
    )


def _count(value: dict[str, Any], name: str) -> int | None:
    found = value.get(name)
    return found if type(found) is int and found >= 0 else None
