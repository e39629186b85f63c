"""Ollama's lists of models: `/api/tags`, `/api/ps`, `/api/show`. Pure.

A digest there tells two states of a model apart; ours is one of the name and what it is. How long a
loaded model stays is not known here: it is told as far away, since it stays until room is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from orchestrator.control import ModelCard, ModelRoute
from orchestrator.gateway.ollama import LATEST
from orchestrator.gateway.ollama_answers import stamp
from orchestrator.gateway.places import Target

VERSION = "0.13.0"  # the API that is spoken: tools ask for what an older one lacks
_STAYS_S = 10 * 365 * 86_400.0


def tags(targets: Sequence[Target]) -> dict[str, Any]:
    """GET /api/tags: every model, loaded or not."""
    return {"models": [_listed(each.route, each.served.name) for each in targets]}


def loaded(routes: list[ModelRoute], now: float) -> dict[str, Any]:
    """GET /api/ps: what runs. `now` is seconds since the epoch."""
    running = [route for route in routes if route.replicas]
    return {
        "models": [
            {
                **_listed(route, route.name),
                "size": route.card.memory_bytes * len(route.replicas),
                "size_vram": route.card.gpu_bytes * len(route.replicas),
                "context_length": route.context,
                "expires_at": stamp(now + _STAYS_S),
            }
            for route in running
        ]
    }


def show(route: ModelRoute) -> dict[str, Any]:
    """POST /api/show: one model."""
    card = route.card
    abilities = ["completion"]
    if "tools" in route.quirks.chat_fields and "tools" in (route.chat_template or ""):
        abilities.append("tools")
    return {
        "modelfile": f"# served by Engine Room\nFROM {route.name}\n",
        "parameters": "",
        "template": route.chat_template or "",
        "details": _details(card),
        "model_info": {
            "general.architecture": card.architecture,
            "general.parameter_count": card.params,
            f"{card.architecture}.context_length": route.context,
        },
        "capabilities": abilities,
        "modified_at": stamp(route.created),
    }


def _listed(route: ModelRoute, name: str) -> dict[str, Any]:
    tagged = name if ":" in name else name + LATEST
    told = f"{name} {route.card.model_dump_json()}"
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": stamp(route.created),
        "size": route.card.weight_bytes,
        "digest": hashlib.sha256(told.encode()).hexdigest(),
        "details": _details(route.card),
    }


def _details(card: ModelCard) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": card.format,
        "family": card.architecture,
        "families": [card.architecture],
        "parameter_size": size(card.params),
        "quantization_level": card.quantization,
    }


def size(params: int) -> str:
    """A number of weights as people say it: 7.2B, 360.5M, 12.0K."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if params >= unit:
            return f"{params / unit:.1f}{letter}"
    return str(params)
