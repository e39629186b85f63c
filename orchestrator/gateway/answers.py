"""What `/v1/completions` and `/v1/chat/completions` answer as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def usage(prompt: int, completion: int) -> dict[str, int]:
    """The usage object; all three count tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def usage_chunk(last: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    """The chunk that `include_usage` asks for, modelled on the stream's last chunk."""
    head: dict[str, Any] = {key: last.get(key) for key in ("id", "object", "created", "model")}
    return {**head, "choices": [], "usage": counts}


def whole_answer(
    chunks: Iterable[dict[str, Any]], counts: dict[str, int], text: str
) -> dict[str, Any]:
    """The answer of a call without `stream`: the chunks that say more than text, and all of it."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    first, chat, said, reason = None, False, bool(text), None
    for part in chunks:
        first = part if first is None else first
        for choice in part["choices"]:
            reason = choice.get("finish_reason") or reason
            if "delta" in choice:
                chat = True
                if delta := choice["delta"]:
                    said = said or isinstance(delta.get("content"), str)
                    if delta.get("tool_calls"):
                        _merge(message, delta)
    if said:
        message["content"] = text
    head = first or {}
    end = {"logprobs": None, "finish_reason": reason}
    return {
        "id": head.get("id"),
        "created": head.get("created"),
        "model": head.get("model"),
        "object": "chat.completion" if chat else "text_completion",
        "choices": [
            {"index": 0, "message": message, **end} if chat else {"index": 0, "text": text, **end}
        ],
        "usage": counts,
    }


def _merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Put the pieces of tool calls together."""
    for call in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        index = call.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        calls[index]["id"] = call.get("id") or calls[index].get("id")
        for key, value in (call.get("function") or {}).items():
            calls[index]["function"][key] += value or ""
