"""Sorts named tensors, of GGUF or of safetensors, by place. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine_launchers.model import WeightParts

_LAYER = re.compile(r"(?:^|\.)(?:blk|layers|h|block|blocks)\.(\d{1,5})\.")
_TOWERS = ("vision", "visual", "audio", "vit.", "v.blk", "mm_", "multi_modal", "mtp.")
_TABLE = (
    "token_embd.weight",
    "embed_tokens",
    "wte.",
    "word_embeddings.",
    "embed_in.",
    "backbone.embeddings",
    "position_embd",
    "embed_positions",
)
_EXPERT = re.compile(r"_exps\.|\.experts\.")


def parts_of(tensors: Iterable[tuple[str, int]], layers: int) -> WeightParts:
    """Add up (name, bytes) by place; what belongs to no layer below `layers` is `other`."""
    table = head = rest = experts = 0
    blocks = [0] * layers
    for name, size in tensors:
        layer = _LAYER.search(name)
        tower = any(word in name for word in _TOWERS)
        if layer and not tower and int(layer[1]) < layers:
            blocks[int(layer[1])] += size
            experts += size if _EXPERT.search(name) else 0
        elif tower:
            rest += size
        elif any(word in name for word in _TABLE):
            table += size
        elif name.startswith("output.") or "lm_head." in name or "embed_out." in name:
            head += size
        else:
            rest += size
    return WeightParts(
        embedding=table, output=head, layers=tuple(blocks), other=rest, experts=experts
    )
