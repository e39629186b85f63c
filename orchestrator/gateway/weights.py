"""How long what a body asks is: all texts that an engine reads, whatever they are called. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LABELS = frozenset({"role", "type", "id", "call_id", "tool_call_id", "tool_use_id"})
_READ = ("prompt", "messages", "input", "system", "instructions", "tools", "functions")


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
    return [{"role": "user", "content": said}] if isinstance(said, str) else list(said)


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
            total += _letters(each)
    return total
