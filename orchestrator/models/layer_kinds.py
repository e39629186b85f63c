"""Which kind each layer of a model is: full or sliding attention, or a state. Pure.

Configs say it in many ways: a list of names, a pattern, an interval, letters. All of them become
one tuple with a word per layer: `full`, `sliding`, `linear` (gated delta rule, lightning), `mamba`
(version 2), `mamba1`, and for models whose blocks hold one thing each `mlp` and `moe`.
"""

from __future__ import annotations

import json

from orchestrator.models.facts import Facts

_WORDS = {
    "full_attention": "full",
    "attention": "full",
    "full": "full",
    "global": "full",
    "sliding_attention": "sliding",
    "local": "sliding",
    "chunked_attention": "sliding",
    "linear_attention": "linear",
    "mamba": "mamba",
    "mamba2": "mamba",
    "mlp": "mlp",
    "moe": "moe",
}
_LETTERS = {"M": "mamba", "*": "full", "-": "mlp", "E": "moe"}


def window(facts: Facts) -> int:
    """Tokens that a sliding layer looks back on; 0 where no layer slides."""
    if facts.values.get("use_sliding_window") is False:
        return 0
    return facts.number(("sliding_window", "attention_chunk_size"))


def kinds(facts: Facts) -> tuple[str, ...]:
    """One word per layer."""
    layers = facts.layers
    found = _listed(facts) or _by_interval(facts, layers) or _by_window(facts, layers)
    return tuple((list(found) + [found[-1]] * layers)[:layers])


def _listed(facts: Facts) -> list[str]:
    pattern = facts.values.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [_LETTERS.get(letter, "full") for letter in pattern]
    for key in ("layer_types", "layers_block_type", "block_types"):
        words = facts.words(key)
        if words:
            known = [_WORDS.get(word, "full") for word in words]
            return known if window(facts) else ["full" if k == "sliding" else k for k in known]
    lightning = facts.values.get("attn_type_list")  # MiniMax: 0 is lightning, 1 is softmax
    if isinstance(lightning, list) and lightning:
        return ["full" if each else "linear" for each in lightning]
    return []


def _by_interval(facts: Facts, layers: int) -> list[str]:
    every = facts.number("full_attention_interval")
    if every and facts.number("linear_num_value_heads"):
        return ["linear" if (i + 1) % every else "full" for i in range(layers)]
    if facts.number("attn_layer_period") and facts.is_a("jamba"):
        period, offset = facts.number("attn_layer_period"), facts.number("attn_layer_offset")
        return ["full" if i % period == offset else "mamba1" for i in range(layers)]
    counts = facts.mapping("layer_types_count")
    if counts:
        full = Facts(counts).number("full_attention")
        other = "linear" if "linear_attention" in counts else "sliding"
        every = layers // full if full else layers + 1
        return ["full" if (i + 1) % every == 0 else other for i in range(layers)]
    return []


def _by_window(facts: Facts, layers: int) -> list[str]:
    size = window(facts)
    if size == 0 or size >= (facts.number("max_position_embeddings") or size + 1):
        return ["full"] * layers
    listed = facts.values.get("sliding_window_indices")
    if isinstance(listed, str):
        try:
            listed = json.loads(listed)
        except ValueError:
            listed = None
    if isinstance(listed, list) and listed:
        return ["sliding" if each else "full" for each in listed]
    every = facts.number(("sliding_window_pattern", "_sliding_window_pattern"))
    if every == 0:
        every = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gptoss": 2, "llama4": 4}.get(
            facts.family.removesuffix("text"), 0
        )
    if facts.is_a("gptoss"):
        return ["full" if i % 2 else "sliding" for i in range(layers)]
    if every:
        return ["full" if (i + 1) % every == 0 else "sliding" for i in range(layers)]
    from_layer = facts.number("max_window_layers") if facts.is_a("qwen") else 0
    return ["full" if i < from_layer else "sliding" for i in range(layers)]
