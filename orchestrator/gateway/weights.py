"""How long what a body asks is: all texts that an engine reads, whatever they are called. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LETTERS_PER_TOKEN = 4  # a token that is given by its number
_LABELS = frozenset({"role", "type", "id", "call_id", "tool_call_id", "tool_use_id"})
_READ = (
    "prompt", "messages", "input", "content", "query", "documents", "tokens", "system",
    "instructions", "tools", "functions",
)  # fmt: skip


def characters(body: Mapping[str, Any]) -> int:
    """Of the prompt, the messages and what goes before them."""
    total = 0
    for name in _READ:
        if name in body:
            total += _letters(body[name])
    return total


def lead(body: Mapping[str, Any]) -> str:
    """What stands before the conversation, where the API has a field of its own for that."""
    return text(body.get("system") or body.get("instructions") or "")


def turns(body: Mapping[str, Any]) -> list[Any]:
    """The conversation."""
    said = body.get("messages") or body.get("input") or []
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    return [each for each in said if isinstance(each, Mapping)]


def text(value: Any) -> str:
    """A text, or the texts of its parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(text(part) for part in value)
    return text(value.get("text") or "") if isinstance(value, Mapping) else ""


def _letters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    total = 0
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _LABELS:
                total += len(inner) if isinstance(inner, str) else _letters(inner)
    elif isinstance(value, list):
        for each in value:
            total += _LETTERS_PER_TOKEN if type(each) is int else _letters(each)
    return total
