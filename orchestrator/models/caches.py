"""From a config to what each layer of the model caches. Pure."""

from __future__ import annotations

from collections import Counter

from engine_launchers.model import CacheGroup
from orchestrator.models.blocks import mamba_sizes
from orchestrator.models.facts import Facts
from orchestrator.models.layer_kinds import kinds, window

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}


def cache_groups(facts: Facts, dtype: str) -> tuple[CacheGroup, ...]:
    """Groups of layers that cache alike; empty where all keep full K and V of one shape.

    `dtype` is the activations' type: a convolution's state is kept in it, a recurrent state in
    32 bit unless the config names another. Layers that read another layer's cache, and layers
    without attention, keep nothing and are in no group.
    """
    every = kinds(facts)
    own = every[: len(every) - min(facts.number("num_kv_shared_layers"), len(every))]
    counts = Counter(kind for kind in own if kind not in ("mlp", "moe"))
    groups = tuple(_group(facts, kind, number, dtype) for kind, number in sorted(counts.items()))
    plain = len(groups) == 1 and groups[0].kind == "full" and len(own) == len(every)
    same = plain and groups[0].head_dim == facts.head_dim == groups[0].v_head_dim
    return () if same and groups[0].layers == len(every) else groups


def _group(facts: Facts, kind: str, layers: int, dtype: str) -> CacheGroup:
    if kind in ("full", "sliding"):
        return _attention(facts, kind, layers)
    conv, state = _state_elements(facts, kind)
    named = facts.values.get("mamba_ssm_dtype") or facts.values.get("mamba_ssm_cache_dtype")
    width = _WIDTHS.get(str(named), 4)
    return CacheGroup(
        layers=layers, kind="state", state_bytes=conv * _WIDTHS[dtype] + state * width
    )


def _attention(facts: Facts, kind: str, layers: int) -> CacheGroup:
    if facts.latent:
        latent = facts.number("kv_lora_rank") + facts.number("qk_rope_head_dim")
        return CacheGroup(layers=layers, kind="latent", latent_dim=latent)
    heads, dim = facts.kv_heads, facts.head_dim
    if facts.architecture.startswith("DeepseekV4"):  # one vector is key and value at once
        return CacheGroup(layers=layers, kind="latent", latent_dim=heads * dim)
    if kind == "full":
        dim = facts.number("global_head_dim") or dim
        heads = facts.number("num_global_key_value_heads") or heads
        return CacheGroup(layers=layers, kv_heads=heads, head_dim=dim, v_head_dim=dim)
    return CacheGroup(
        layers=layers,
        kind="sliding",
        kv_heads=heads,
        head_dim=dim,
        v_head_dim=dim,
        window=window(facts),
    )


def _state_elements(facts: Facts, kind: str) -> tuple[int, int]:
    """Elements of the convolution's state and of the recurrent state, per layer and sequence."""
    if kind == "linear":
        values = facts.number("linear_num_value_heads") or facts.heads
        width = facts.number("linear_value_head_dim") or facts.head_dim
        key = facts.number("linear_key_head_dim") or facts.head_dim
        keys = facts.number("linear_num_key_heads") * key
        kernel = facts.number("linear_conv_kernel_dim", 1)
        return (2 * keys + values * width) * max(0, kernel - 1), values * width * key
    if kind == "mamba1":
        inner = facts.number("mamba_expand", 2) * facts.hidden
        kernel = facts.number("mamba_d_conv", 4)
        return inner * max(0, kernel - 1), inner * facts.number("mamba_d_state", 16)
    inner, conv, _, state = mamba_sizes(facts)
    kernel = facts.number(("conv_kernel", "mamba_d_conv"), 4)
    return conv * max(0, kernel - 1), inner * state
