"""A model's own parameters for requests that say nothing. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from engine_launchers.base import Quirks

_NAMES = {  # a default, and all names under which a request may have said it
    "max_new_tokens": ("max_new_tokens", "max_tokens", "max_completion_tokens"),
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
}
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p"})


def with_defaults(
    body: Mapping[str, Any],
    said: Collection[str],
    defaults: Mapping[str, int | float],
    quirks: Quirks,
    allowed: Collection[str],
) -> dict[str, Any]:
    """The engine body with the model's defaults where the client said nothing.

    `said` are the fields of the client's own body. What the engine does not take (`allowed`) is
    left out, and so is sampling where the client asked for none.
    """
    filled = dict(body)
    for name, value in defaults.items():
        field = {"max_new_tokens": "max_tokens", "repetition_penalty": quirks.repetition_field}
        own = field.get(name, name)
        silent = not any(each in said for each in _NAMES.get(name, (name,)))
        greedy = "do_sample" in said and body.get("temperature") == 0 and name in _SAMPLING
        if silent and own in allowed and not greedy:
            filled[own] = value
    return filled
