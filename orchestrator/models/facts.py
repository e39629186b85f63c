"""Reads a Hugging Face config (or a mapping with the same keys) without trusting it.

The same fact has many names: `n_embd`, `hidden_size`; `num_local_experts`, `n_routed_experts`. This
is the one place that knows them. Every number is checked: an integer, not negative, and not larger
than any model could have, so that nothing absurd is ever allocated from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ModelInvalid

_LARGEST = 1 << 40
_MAX_LAYERS = 4096
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model")

HIDDEN = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
VOCAB = ("litgpt_padded_vocab_size", "padded_vocab_size", "vocab_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "moe_top_k", "num_experts_per_token", "top_k_experts")

# What a family's config class assumes where the file is silent.
_HABITS: dict[str, dict[str, Any]] = {
    "qwen35": {
        "full_attention_interval": 4,
        "linear_num_value_heads": 32,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    },
    "gemma4": {"sliding_window": 512, "global_head_dim": 512, "sliding_window_pattern": 6},
    "gptoss": {"sliding_window": 128},
}
_HABITS["qwen3next"] = _HABITS["qwen35"]


class Facts:
    """One config: the language model's keys first, the outer ones where those are silent."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        values = dict(config)
        for key in _NESTED:
            inner = config.get(key)
            if isinstance(inner, Mapping):
                values.update({k: v for k, v in inner.items() if v is not None})
        names = config.get("architectures") or values.get("architectures")
        self.values = values
        self.architecture = str(
            names[0]
            if isinstance(names, list | tuple) and names
            else values.get("model_type") or ""
        )
        for family, habits in _HABITS.items():
            if self.is_a(family):
                self.values = {**habits, **{k: v for k, v in values.items() if v is not None}}

    @property
    def family(self) -> str:
        """The architecture in short: `qwen3moe`, `gemma3`, `nemotronh`; empty where unknown."""
        name = self.architecture
        for suffix in _SUFFIXES:
            name = name.removesuffix(suffix)
        return name.replace("_", "").replace("-", "").lower()

    def is_a(self, *families: str) -> bool:
        """Whether the family begins with one of these."""
        return self.family.startswith(families)

    def number(self, keys: str | tuple[str, ...], default: int = 0) -> int:
        """The first of `keys` that is given, as a whole number; a list counts with its largest."""
        for key in (keys,) if isinstance(keys, str) else keys:
            value = self.values.get(key)
            if isinstance(value, list) and value:
                value = max((each for each in value if isinstance(each, int)), default=None)
            if value is None:
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
                raise ModelInvalid(f"the config's {key} is {value!r}: expected a whole number")
            return value
        return default

    def need(self, keys: tuple[str, ...]) -> int:
        """Like `number`, but more than 0. Raises ModelInvalid naming the missing key."""
        value = self.number(keys)
        if value == 0:
            name = "vocab_size" if keys is VOCAB else keys[0]
            raise ModelInvalid(f"the config lacks {name}: not a language model's config.json?")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A true-or-false key."""
        value = self.values.get(key)
        return default if value is None else bool(value)

    def words(self, key: str) -> tuple[str, ...]:
        """A list of words, or nothing."""
        value = self.values.get(key)
        return tuple(map(str, value)) if isinstance(value, list | tuple) else ()

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A nested object, or an empty one."""
        value = self.values.get(key)
        return value if isinstance(value, Mapping) else {}

    @property
    def layers(self) -> int:
        """Repeating blocks."""
        value = self.need(LAYERS)
        if value > _MAX_LAYERS:
            raise ModelInvalid(f"the config's {LAYERS[0]} is {value}: no model has as many")
        return value

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.need(HIDDEN)

    @property
    def heads(self) -> int:
        """Query heads; 0 in a model without attention."""
        return self.number(HEADS)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        if self.is_a("falcon") and not self.flag("new_decoder_architecture"):
            return 1 if self.flag("multi_query", True) else self.heads
        return self.number(KV_HEADS) or self.heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        given = self.number("head_dim")
        if self.latent and self.number("qk_nope_head_dim"):
            given = self.number("qk_nope_head_dim") + self.number("qk_rope_head_dim")
        return given or (self.hidden // self.heads if self.heads else 0)

    @property
    def experts(self) -> int:
        """Routed experts per layer; 0 for a dense model."""
        count = self.number(EXPERTS)
        return count if count > 1 else 0

    @property
    def experts_used(self) -> int:
        """Routed experts that one token passes through."""
        return min(self.number(EXPERTS_USED, 1), self.experts) if self.experts else 0

    @property
    def latent(self) -> bool:
        """Whether attention keeps one compressed latent per token (MLA)."""
        return self.number("kv_lora_rank") > 0

    @property
    def tied(self) -> bool:
        """Whether the head is the token table; the family's habit where the config is silent."""
        small = self.hidden <= 3072 and not self.experts
        habit = self.is_a("gemma", "starcoder2", "opt", "falcon") or (
            small
            and (
                (self.is_a("qwen2", "qwen3") and self.hidden <= 2560)
                or (self.is_a("llama") and self.number(VOCAB) == 128256)
                or (self.is_a("phi3") and self.number(VOCAB) == 200064)
            )
        )
        return self.flag("tie_word_embeddings", habit)
