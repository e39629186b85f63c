"""Bodies that need no explanation: the usual fields with usual values, accepted at a glance. Pure.

What is accepted here, the models in `generate` and `openai` accept too, and to the same effect; a
property test holds that. Whatever is not accepted here goes to them, to be accepted or refused with
its reason: this module refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from orchestrator.gateway.generate import MAX_SEED

Check = Callable[[Any], bool]
_BACKSLASH = ord("\\")
_MOST_BRACKETS = 64  # with so few nothing nests too deep
_ROLES = frozenset({"system", "user", "assistant"})


def _whole(least: int, most: int) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float) -> Check:
    return lambda value: type(value) in (int, float) and least <= value <= most


def _share(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def _text(value: Any) -> bool:
    return type(value) is str


def _some_text(value: Any) -> bool:
    return type(value) is str and value != ""


def _flag(value: Any) -> bool:
    return type(value) is bool


def _stop(value: Any) -> bool:
    texts = value if type(value) is list else [value]
    return len(texts) <= 4 and all(type(each) is str and 0 < len(each) <= 64 for each in texts)


def _usage(value: Any) -> bool:
    return type(value) is dict and list(value) == ["include_usage"] and _flag(*value.values())


def _messages(value: Any) -> bool:
    return type(value) is list and 0 < len(value) <= 1000 and all(map(_message, value))


def _message(value: Any) -> bool:
    return (
        type(value) is dict
        and len(value) == 2
        and type(value.get("content")) is str
        and type(role := value.get("role")) is str
        and role in _ROLES
    )


_COMMON: dict[str, Check] = {
    "model": _text,
    "max_tokens": _whole(1, 1_000_000),
    "temperature": _number(0, 2),
    "top_p": _share,
    "stop": _stop,
    "stream": _flag,
    "stream_options": _usage,
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _whole(0, MAX_SEED),
    "top_k": _whole(0, 1_000_000),
    "min_p": _number(0, 1),
}
CHAT: Mapping[str, Check] = {**_COMMON, "messages": _messages}
COMPLETION: Mapping[str, Check] = {**_COMMON, "prompt": _some_text}
GENERATE: Mapping[str, Check] = {
    "prompt": _some_text,
    "max_new_tokens": _whole(1, 1_000_000),
    "temperature": _number(0, 2),
    "top_p": _share,
    "do_sample": _flag,
    "stop": _stop,
    "seed": _whole(0, MAX_SEED),
    "model": _text,
    "stream": _flag,
}


def accepted(data: bytes, fields: Mapping[str, Check], needed: str) -> dict[str, Any] | None:
    """The body where each of its fields is one of `fields` and `needed` is there; else None."""
    if _BACKSLASH in data and b"\\u" in data:  # the first, a number, is searched far faster
        return None
    if data.count(b"{") + data.count(b"[") > _MOST_BRACKETS:
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if type(value) is not dict or needed not in value:
        return None
    keys = len(value)
    for name, given in value.items():
        check = fields.get(name)
        if check is None or not check(given):
            return None
        if type(given) is dict:
            keys += len(given)
        elif name == "messages":
            keys += 2 * len(given)
    # With no more colons than keys each of them is a key's, and no key was written twice.
    return value if keys == data.count(b":") or keys == _keys(data) else None


def _keys(data: bytes) -> int:
    """How many keys are written there, -1 where that is not to be seen at a glance.

    The parser keeps one of two equal keys. A key ends in `":`; inside a string a quote has a
    backslash before it; and nothing says that a colon follows its key at once.
    """
    if b'\\":' in data or b" :" in data or b"\n:" in data or b"\t:" in data or b"\r:" in data:
        return -1
    return data.count(b'":')
