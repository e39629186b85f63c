"""How long a client wants its model kept after this request, as Ollama's clients say it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

FOR_EVER = -1.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SCHEMA = r"^-?(\d+(\.\d+)?(ms|s|m|h)?|(\d+(\.\d+)?(ms|s|m|h))+)$"
_MOST_S = 365 * 86_400.0


def _seconds(value: object) -> float:
    """Seconds from a number or from a text such as "5m" or "1h30m"; below 0 means for ever."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError('give seconds, or a duration such as "5m"; -1 keeps it for ever')
    if isinstance(value, str):
        return _duration(value.strip())
    return FOR_EVER if value < 0 else float(min(value, _MOST_S))


def _duration(text: str) -> float:
    forever, text = text.startswith("-"), text.removeprefix("-")
    parts = _PART.findall(text)
    plain = re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text)
    if (not plain and "".join(number + unit for number, unit in parts) != text) or not text:
        raise ValueError('give seconds, or a duration such as "5m"; -1 keeps it for ever')
    total = float(text) if plain else sum(float(n) * _UNITS[unit] for n, unit in parts)
    return FOR_EVER if forever else min(total, _MOST_S)


KeepAlive = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": _SCHEMA}]}),
]
