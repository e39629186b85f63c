"""Bytes that a model's cache takes, by its cache groups. Pure arithmetic, shared by the engines.

K and V of one token in one layer: `kv_heads x (head_dim + v_head_dim)` elements. Tensor parallel
splits KV heads and replicates those that cannot be split; latent caches (MLA) are never split.
Held against published logs in `bench/planner`.
"""

from __future__ import annotations

from engine_launchers.model import CacheGroup, ModelSpec

# Bytes per element of a cache, by the names that the engines use. The block formats of llama.cpp
# carry their scales: 34 bytes for 32 elements (q8_0), 18 (q4_0), 20 (q4_1), 22 (q5_0), 24 (q5_1).
_ELEMENT_BYTES = {
    "f32": 4.0, "float32": 4.0, "auto": 2.0, "f16": 2.0, "float16": 2.0, "half": 2.0,
    "bf16": 2.0, "bfloat16": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0,
    "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}  # fmt: skip


def element_bytes(dtype: str | None) -> float:
    """Bytes per cached element; None and unknown names mean 16 bit."""
    return _ELEMENT_BYTES.get((dtype or "auto").lower(), 2.0)


def layer_bytes_per_token(group: CacheGroup, dtype: str | None = None, ranks: int = 1) -> float:
    """Bytes that one token adds in one layer of `group` on one of `ranks` tensor parallel ranks."""
    if group.kind == "state":
        return 0.0
    if group.kind == "latent":
        return group.latent_dim * element_bytes(dtype)
    heads = max(1.0, group.kv_heads / ranks)
    return heads * (group.head_dim + group.v_head_dim) * element_bytes(dtype)


def bytes_per_token(model: ModelSpec, dtype: str | None = None, ranks: int = 1) -> float:
    """Bytes per token and rank over all layers, for a context inside every sliding window."""
    return sum(g.layers * layer_bytes_per_token(g, dtype, ranks) for g in model.cache_groups)


def sequence_bytes(
    model: ModelSpec,
    tokens: int,
    dtype: str | None = None,
    ranks: int = 1,
    step: int = 0,
    windows: bool = True,
) -> float:
    """Bytes that one sequence of `tokens` takes on one rank.

    A sliding layer keeps its window and the `step` tokens of the batch that is being computed;
    `windows=False` is for engines that cache those layers like all others. A state layer costs the
    same at any length, and is split over the ranks.
    """
    total = 0.0
    for group in model.cache_groups:
        if group.kind == "state":
            total += group.layers * group.state_bytes / ranks
            continue
        kept = tokens
        if windows and group.kind == "sliding" and group.window:
            kept = min(tokens, group.window + step)
        total += group.layers * layer_bytes_per_token(group, dtype, ranks) * kept
    return total


def longest_context(
    model: ModelSpec,
    available: float,
    limit: int,
    dtype: str | None = None,
    ranks: int = 1,
    step: int = 0,
    sequences: int = 1,
) -> int:
    """Tokens, at most `limit`, that each of `sequences` can have in `available` bytes of a rank."""
    if sequences * sequence_bytes(model, limit, dtype, ranks, step) <= available:
        return limit
    low, high = 0, limit - 1
    while low < high:
        middle = (low + high + 1) // 2
        need = sequences * sequence_bytes(model, middle, dtype, ranks, step)
        low, high = (middle, high) if need <= available else (low, middle - 1)
    return low
