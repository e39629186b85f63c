"""What other tools would have said of the same rows; their rules as read in their sources.

GPUStack 47277d7: weights x 1.2 + 2 GiB against the sum of the cards' memory x utilization; the
context is not in it. Ollama fb30760: file + 16-bit KV of all layers, against free memory less
457 MiB a card. gguf-parser 8dc7a62: metadata, weights, KV and the widest step of the graph. KAITO
056b8280: 84 % of a card, weights x 1.02, 2.3 GiB + 5 % of a card's weights, KV by tensor parallel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine_launchers.caches import sequence_bytes
from engine_launchers.model import ModelSpec

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Situation:
    """One row as the rules see it: bytes per card, cards, ranks, tokens of context."""

    model: ModelSpec
    card: float
    cards: int
    ranks: int
    context: int
    utilization: float
    kv_dtype: str | None


@dataclass(frozen=True)
class Claim:
    """Bytes per card that a rule expects, KV included where the rule has it, and its refusal."""

    per_card: float
    kv: float | None
    refused: bool


def gpustack(at: Situation) -> Claim:
    """Weights x 1.2 + 2 GiB."""
    claim = at.model.weight_bytes * 1.2 + 2 * GIB
    return Claim(claim / at.cards, None, claim > at.card * at.cards * 0.9)


def ollama(at: Situation) -> Claim:
    """File + 16-bit KV with the fewest KV heads of any layer."""
    model = at.model
    kv = 2 * model.layers * model.kv_heads * model.head_dim * at.context * 2
    whole = model.weight_bytes + kv
    free = (at.card - 457 * MIB) * at.cards
    return Claim(whole / at.cards, kv, whole > free)


def gguf_parser(at: Situation) -> Claim:
    """Footprint, weights, KV, and the widest of attention, feed-forward and logits."""
    model, step = at.model, 512
    kv = sequence_bytes(model, at.context, at.kv_dtype)
    hidden = model.hidden or model.heads * model.head_dim
    tensors = model.layers * (9 + 3 * (model.experts or 0))
    attention = step * hidden * 4 * 4 + at.context * step * model.heads * 4
    forward = step * 4 * (3 * model.intermediate + hidden)
    inputs = step * (hidden + at.context) * 4 * (4 if at.cards > 1 else 1)
    compute = 8 * tensors + 4 * MIB + inputs + max(attention, forward) + model.vocab * step * 4
    whole = 5 * MIB + model.weight_bytes + kv + compute * at.cards
    return Claim(whole / at.cards, kv, whole > at.card * at.cards)


def kaito(at: Situation) -> Claim:
    """84 % of a card less weights and a constant must hold one context."""
    weights = at.model.weight_bytes * 1.02 / at.ranks
    kv = sequence_bytes(at.model, at.context, at.kv_dtype, at.ranks)
    fixed = 2.3 * GIB + 0.05 * weights
    return Claim(weights + fixed + kv, kv, weights + fixed + kv > 0.84 * at.card)


RULES: dict[str, Callable[[Situation], Claim]] = {
    "gpustack": gpustack,
    "ollama": ollama,
    "gguf-parser": gguf_parser,
    "kaito": kaito,
}
APPLIES = {
    "vllm": ("gpustack", "kaito"),
    "llama.cpp": ("gpustack", "ollama", "gguf-parser"),
}
