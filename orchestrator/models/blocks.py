"""The tensors of one repeating block, per architecture. Pure.

Roles are llama.cpp's tensor names without `blk.N.` and `.weight`, because its quantization rules go
by them. Shapes are (rows = outputs, columns = inputs): a row is what is quantized in groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ModelInvalid
from orchestrator.models.facts import INTERMEDIATE, Facts

_PARALLEL = ("phi", "falcon")  # one norm before attention and MLP together
_PLAIN_MLP = ("starcoder2", "phi", "falcon", "gptneox", "opt", "gpt2", "nemotron", "bloom", "mpt")
_LAYER_NORM = ("starcoder2", "phi", "falcon", "gptneox", "opt", "gpt2", "bloom", "nemotron")
_ALL_BIASES = ("starcoder2", "phi", "gptneox", "opt", "gpt2", "bloom")
_QK_NORM = ("qwen3", "gemma3", "gemma4", "olmo2", "glm4moe", "minimaxm2")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`copies` matrices of `rows` x `cols`; `plain` ones are never quantized."""

    role: str
    rows: int
    cols: int
    copies: int = 1
    plain: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return self.rows * self.cols * self.copies

    @property
    def expert(self) -> bool:
        """Whether it belongs to the routed experts."""
        return self.role.endswith("_exps")


def vector(size: int, role: str = "bias") -> Tensor:
    """A bias, a scale or a norm."""
    return Tensor(role, 1, size, plain=True)


def norm(facts: Facts, size: int) -> Tensor:
    """A norm's weight, with its bias where the family uses LayerNorm."""
    biased = _exact(facts, _LAYER_NORM) and not facts.is_a("nemotronh")
    return vector(size * 2 if biased else size, "norm")


def _exact(facts: Facts, families: tuple[str, ...]) -> bool:
    # `phi` is phi-1.5 and phi-2; phi3 has the shape of Llama
    return facts.is_a(*families) and not facts.is_a("phi3", "phi4", "phimoe")


def block(facts: Facts, kind: str, index: int) -> tuple[Tensor, ...]:
    """All tensors of layer `index`, which is of `kind` (see layer_kinds)."""
    hidden = facts.hidden
    norms = 4 if facts.is_a("gemma2", "gemma3", "gemma4") else 2
    if _exact(facts, _PARALLEL) and not facts.flag("new_decoder_architecture"):
        norms = 1
    single = bool(facts.values.get("hybrid_override_pattern"))
    found = [norm(facts, hidden) for _ in range(1 if single else norms)]
    if kind in ("full", "sliding"):
        found += _latent(facts) if facts.latent else _attention(facts, kind)
    elif kind == "linear":
        found += _delta(facts)
    elif kind == "mamba":
        found += _mamba2(facts)
    elif kind == "mamba1":
        found += _mamba1(facts)
    if kind == "moe" or (not single and has_experts(facts, index)):
        found += _experts(facts)
        if facts.is_a("gemma4"):  # a dense MLP beside the experts, with norms of its own
            found += [*_mlp(facts, facts.need(INTERMEDIATE)), *[vector(hidden, "norm")] * 3]
    elif kind == "mlp" or not single:
        found += _mlp(facts, mlp_width(facts, index))
    per_layer = facts.number("hidden_size_per_layer_input")
    if per_layer:
        found += [
            Tensor("inp_gate", per_layer, hidden),
            Tensor("proj", hidden, per_layer),
            vector(hidden, "norm"),
        ]
    return tuple(found)


def has_experts(facts: Facts, index: int) -> bool:
    """Whether layer `index` routes among experts."""
    if not facts.experts or index < facts.number("first_k_dense_replace"):
        return False
    dense = facts.values.get("mlp_only_layers")
    if isinstance(dense, list) and index in dense:
        return False
    if facts.is_a("jamba"):
        return index % (facts.number("expert_layer_period") or 1) == facts.number(
            "expert_layer_offset"
        )
    step = facts.number(("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq"), 1)
    return (index + 1) % (step or 1) == 0


def mlp_width(facts: Facts, index: int) -> int:
    """Inner width of the dense MLP of layer `index`."""
    dense = facts.number("intermediate_size_mlp") if facts.is_a("llama4") else 0
    width = dense or facts.number(INTERMEDIATE) or facts.number("moe_intermediate_size")
    shared = facts.number("num_kv_shared_layers")
    if facts.flag("use_double_wide_mlp") and index >= facts.layers - shared:
        width *= 2
    return width


def _attention(facts: Facts, kind: str) -> list[Tensor]:
    hidden, heads, kv_heads, dim = facts.hidden, facts.heads, facts.kv_heads, facts.head_dim
    wide = kind == "full" and facts.number("global_head_dim") > 0
    if wide:
        dim = facts.number("global_head_dim")
    same = wide and facts.flag("attention_k_eq_v")
    if same:
        kv_heads = facts.number("num_global_key_value_heads") or kv_heads
    query, keys = heads * dim, kv_heads * dim
    gate = 2 if facts.flag("attn_output_gate") or facts.is_a("qwen35", "qwen3next") else 1
    found: list[Tensor] = []
    if facts.is_a("phi3", "falcon", "gptneox", "bloom"):
        found.append(Tensor("attn_qkv", query + 2 * keys, hidden))
    else:
        found.append(Tensor("attn_q", query * gate, hidden))
        found.append(Tensor("attn_k", keys, hidden))
        if not same:
            found.append(Tensor("attn_v", keys, hidden))
    found.append(Tensor("attn_output", hidden, query))
    everywhere = _exact(facts, _ALL_BIASES) or facts.is_a("gptoss")
    if everywhere or facts.is_a("qwen2") or facts.flag("attention_bias"):
        found.append(vector(query + 2 * keys))
    if everywhere or (facts.flag("attention_bias") and not facts.is_a("qwen", "glm")):
        found.append(vector(hidden))
    if facts.is_a("gptoss"):
        found.append(vector(heads, "attn_sinks"))
    if facts.is_a("minimaxm2", "olmo2"):
        found.append(vector(query + keys, "norm"))
    elif facts.is_a(*_QK_NORM):
        found.append(vector(2 * dim, "norm"))
    return found


def _latent(facts: Facts) -> list[Tensor]:
    hidden, heads, rank = facts.hidden, facts.heads, facts.number("kv_lora_rank")
    rope, plain = facts.number("qk_rope_head_dim"), facts.number("qk_nope_head_dim")
    value = facts.number("v_head_dim")
    if not plain or not value:
        raise ModelInvalid("the config lacks qk_nope_head_dim or v_head_dim, which its MLA needs")
    query, low = heads * (plain + rope), facts.number("q_lora_rank")
    found = (
        [Tensor("attn_q_a", low, hidden), Tensor("attn_q_b", query, low), vector(low, "norm")]
        if low
        else [Tensor("attn_q", query, hidden)]
    )
    index_dim, index_heads = facts.number("index_head_dim"), facts.number("index_n_heads")
    if index_dim and index_heads:  # the sparse-attention indexer of DeepSeek V3.2
        found += [
            Tensor("indexer_q", index_heads * index_dim, low or hidden),
            Tensor("indexer_k", index_dim, hidden),
            Tensor("indexer_w", index_heads, hidden, plain=True),
        ]
    return [
        *found,
        Tensor("attn_kv_a", rank + rope, hidden),
        vector(rank, "norm"),
        Tensor("attn_kv_b", heads * (plain + value), rank),
        Tensor("attn_output", hidden, heads * value),
    ]


def _mlp(facts: Facts, width: int) -> list[Tensor]:
    hidden = facts.hidden
    found = [Tensor("ffn_down", hidden, width)]
    if _exact(facts, _PLAIN_MLP):
        found.append(Tensor("ffn_up", width, hidden))
        if _exact(facts, _ALL_BIASES):
            found.append(vector(width + hidden))
    elif facts.is_a("phi3"):
        found.append(Tensor("ffn_up", 2 * width, hidden))
    else:
        found += [Tensor("ffn_gate", width, hidden), Tensor("ffn_up", width, hidden)]
    return found


def _experts(facts: Facts) -> list[Tensor]:
    hidden, number = facts.hidden, facts.experts
    width = facts.number("moe_intermediate_size") or facts.need(INTERMEDIATE)
    gated = not facts.is_a("nemotronh")
    found = [
        Tensor("ffn_gate_inp", number, hidden, plain=True),
        Tensor("ffn_down_exps", hidden, width, number),
        Tensor("ffn_up_exps", width, hidden, number),
    ]
    if gated:
        found.append(Tensor("ffn_gate_exps", width, hidden, number))
    if facts.is_a("gptoss"):
        found.append(Tensor("bias_exps", 1, 2 * width + hidden, number, plain=True))
        found.append(vector(number))
    shared = _shared_width(facts, width)
    if shared:
        roles = ("ffn_gate_shexp", "ffn_up_shexp") if gated else ("ffn_up_shexp",)
        found += [Tensor(role, shared, hidden) for role in roles]
        found.append(Tensor("ffn_down_shexp", hidden, shared))
        if facts.is_a("qwen"):
            found.append(vector(hidden, "ffn_gate_inp_shexp"))
    return found


def _shared_width(facts: Facts, width: int) -> int:
    given = facts.number(
        ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
         "shared_intermediate_size")
    )  # fmt: skip
    if given:
        return given * (facts.number("n_shared_experts", 1) or 1)
    number = facts.number(("n_shared_experts", "num_shared_experts", "shared"))
    if number > 16:  # some tables give the width under that key
        return number
    return width * (number or (1 if facts.is_a("llama4") else 0))


def _delta(facts: Facts) -> list[Tensor]:
    hidden = facts.hidden
    values = facts.number("linear_num_value_heads") or facts.heads
    key = facts.number("linear_num_key_heads", values) * facts.number("linear_key_head_dim", 128)
    value = values * (facts.number("linear_value_head_dim") or facts.head_dim)
    kernel = facts.number("linear_conv_kernel_dim", 4)
    return [
        Tensor("attn_qkv", 2 * key + value, hidden),
        Tensor("attn_gate", value, hidden),
        Tensor("ssm_beta_alpha", 2 * values, hidden),
        Tensor("ssm_conv1d", 2 * key + value, kernel, plain=True),
        vector(2 * values, "ssm_a"),
        vector(facts.number("linear_value_head_dim"), "norm"),
        Tensor("ssm_out", hidden, value),
    ]


def mamba_sizes(facts: Facts) -> tuple[int, int, int, int]:
    """Of Mamba 2: inner width, convolution width, heads, state size."""
    heads = facts.number(("mamba_num_heads", "mamba_n_heads"))
    dim = facts.number(("mamba_head_dim", "mamba_d_head"))
    inner = heads * dim or facts.number(("mamba_expand", "expand"), 2) * facts.hidden
    state = facts.number(("ssm_state_size", "mamba_d_state", "state_size"), 128)
    groups = facts.number(("n_groups", "mamba_n_groups"), 1)
    return inner, inner + 2 * groups * state, heads or inner // 64, state


def _mamba2(facts: Facts) -> list[Tensor]:
    inner, conv, heads, _ = mamba_sizes(facts)
    kernel = facts.number(("conv_kernel", "mamba_d_conv"), 4)
    return [
        Tensor("ssm_in", inner + conv + heads, facts.hidden),
        Tensor("ssm_conv1d", conv, kernel + 1, plain=True),
        vector(3 * heads, "ssm_a"),
        vector(inner, "norm"),
        Tensor("ssm_out", facts.hidden, inner),
    ]


def _mamba1(facts: Facts) -> list[Tensor]:
    hidden, inner = facts.hidden, facts.number("mamba_expand", 2) * facts.hidden
    state, kernel = facts.number("mamba_d_state", 16), facts.number("mamba_d_conv", 4)
    rank = facts.number("mamba_dt_rank") or -(-hidden // 16)
    return [
        Tensor("ssm_in", 2 * inner, hidden),
        Tensor("ssm_conv1d", inner, kernel + 1, plain=True),
        Tensor("ssm_x", rank + 2 * state, inner),
        Tensor("ssm_dt", inner, rank),
        Tensor("ssm_a", inner, state + 2, plain=True),
        Tensor("ssm_out", hidden, inner),
    ]


def vision(config: object, hidden: int) -> list[Tensor]:
    """A vision tower and its projector, as far as its config tells; never quantized here."""
    if not isinstance(config, Mapping):
        return []
    facts = Facts(config)
    width = facts.number(("hidden_size", "embed_dim", "width"))
    depth = min(facts.number(("num_hidden_layers", "depth", "layers")), 1000)
    if not width or not depth:
        return []
    inner = facts.number("intermediate_size") or 4 * width
    gates: Any = 3 if facts.values.get("hidden_act") == "silu" else 2
    patch = facts.number("patch_size", 14)
    return [
        Tensor("vision", depth, width * (4 * width + gates * inner), plain=True),
        Tensor("vision_patch", width, 3 * patch * patch, plain=True),
        Tensor("vision_proj", hidden, width, plain=True),
    ]
