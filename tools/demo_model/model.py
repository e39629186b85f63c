"""Llama-architecture model as plain functions on a dictionary of tensors.

Names and layout are those of Hugging Face's LlamaForCausalLM (half-split rotary embedding), so
the dictionary can be saved as it is. B is the batch size, T the sequence length in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
EMBED = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; every row length is a multiple of 256, as K-quants need it."""

    vocab: int = 1536
    hidden: int = 256
    ffn: int = 512
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 4096
    rope_theta: float = 10000.0
    eps: float = 1e-5


def init(shape: Shape, seed: int) -> Weights:
    """Return fresh float32 weights; the output layer is the embedding (tied)."""
    gen = torch.Generator().manual_seed(seed)
    out_std = 0.04 / (2 * shape.layers) ** 0.5
    kv = shape.kv_heads * shape.head_dim

    def normal(rows: int, cols: int, std: float) -> Tensor:
        return torch.randn(rows, cols, generator=gen) * std

    weights = {EMBED: normal(shape.vocab, shape.hidden, 0.03)}
    for i in range(shape.layers):
        p = f"model.layers.{i}."
        weights[p + "input_layernorm.weight"] = torch.ones(shape.hidden)
        weights[p + "self_attn.q_proj.weight"] = normal(shape.hidden, shape.hidden, 0.04)
        weights[p + "self_attn.k_proj.weight"] = normal(kv, shape.hidden, 0.04)
        weights[p + "self_attn.v_proj.weight"] = normal(kv, shape.hidden, 0.04)
        weights[p + "self_attn.o_proj.weight"] = normal(shape.hidden, shape.hidden, out_std)
        weights[p + "post_attention_layernorm.weight"] = torch.ones(shape.hidden)
        weights[p + "mlp.gate_proj.weight"] = normal(shape.ffn, shape.hidden, 0.04)
        weights[p + "mlp.up_proj.weight"] = normal(shape.ffn, shape.hidden, 0.04)
        weights[p + "mlp.down_proj.weight"] = normal(shape.hidden, shape.ffn, out_std)
    weights["model.norm.weight"] = torch.ones(shape.hidden)
    return weights


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each [T, head_dim]."""
    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-steps)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def hidden_states(weights: Weights, shape: Shape, tokens: Tensor) -> Tensor:
    """Map token ids [B, T] to the normalized last hidden states [B, T, hidden]."""
    batch, length = tokens.shape
    cos, sin = rotary(shape, length)
    x = F.embedding(tokens, weights[EMBED])
    for i in range(shape.layers):
        p = f"model.layers.{i}."
        h = _norm(x, weights[p + "input_layernorm.weight"], shape.eps)

        def heads(name: str, count: int, h: Tensor = h, p: str = p) -> Tensor:
            y = F.linear(h, weights[f"{p}self_attn.{name}_proj.weight"])
            return y.view(batch, length, count, shape.head_dim).transpose(1, 2)

        q = _rotate(heads("q", shape.heads), cos, sin)
        k = _rotate(heads("k", shape.kv_heads), cos, sin)
        v = heads("v", shape.kv_heads)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        a = a.transpose(1, 2).reshape(batch, length, shape.hidden)
        x = x + F.linear(a, weights[p + "self_attn.o_proj.weight"])
        h = _norm(x, weights[p + "post_attention_layernorm.weight"], shape.eps)
        gate = F.silu(F.linear(h, weights[p + "mlp.gate_proj.weight"]))
        up = F.linear(h, weights[p + "mlp.up_proj.weight"])
        x = x + F.linear(gate * up, weights[p + "mlp.down_proj.weight"])
    return _norm(x, weights["model.norm.weight"], shape.eps)
