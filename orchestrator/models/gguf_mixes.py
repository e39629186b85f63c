"""Which tensor type llama.cpp's quantizer gives each tensor of a file type such as Q4_K_M. Pure.

A GGUF file type is a mix: the base type, with better ones where they pay. The rules are those of
llama.cpp's `src/llama-quant.cpp` without an importance matrix. Its counters run over the layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.models.blocks import Tensor
from orchestrator.models.parameters import ParameterCount

# type -> (elements per block, bytes per block)
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20),
    "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110),
    "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17),
}  # fmt: skip

# file type -> the type that a tensor has where no rule says otherwise
BASE = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0",
    "Q5_1": "Q5_1", "Q8_0": "Q8_0", "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K", "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS", "IQ3_S": "IQ3_S", "IQ3_M": "IQ3_S", "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS", "MXFP4": "MXFP4",
}  # fmt: skip

_FLOATS = ("F32", "F16", "BF16")
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_LOW = ("IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ3_XXS")
_EIGHT_EXPERTS_OUTPUT = (
    "Q2_K", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS",
)  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """One file type applied to one model."""

    name: str
    family: str
    layers: int
    queries_per_key: int
    experts: int
    tied: bool

    @classmethod
    def of(cls, name: str, count: ParameterCount) -> Mix:
        """The mix called `name`, for this model."""
        ratio = count.heads // max(1, count.kv_heads)
        return cls(name, count.family, len(count.blocks), ratio, count.expert_count, count.tied)

    def size(self, tensor: Tensor, layer: int = 0) -> int:
        """Bytes of `tensor`, which lies in `layer`."""
        per_block, block = BLOCKS[self.type_of(tensor, layer)]
        return -(-tensor.cols // per_block) * block * tensor.rows * tensor.copies

    def type_of(self, tensor: Tensor, layer: int = 0) -> str:
        """The type of `tensor` after all rules and fallbacks."""
        base = BASE[self.name]
        if tensor.plain:
            return "F32"
        if base in _FLOATS:
            return base
        return _fitting(self._wanted(tensor.role, layer), tensor.cols)

    def _wanted(self, role: str, layer: int) -> str:
        base = BASE[self.name]
        if role == "output" or (role == "token_embd" and self.tied):
            return self._output(base)
        if self.name == "MXFP4":
            return "MXFP4" if role.endswith("_exps") else "Q8_0"
        if role in ("token_embd", "per_layer_token_embd"):
            low = {"IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S"}
            return low.get(self.name, base)
        if role == "attn_v":
            return self._values(base, layer)
        if role == "attn_k" and self.experts == 8:
            return "Q8_0"
        if role in ("attn_k", "attn_q") and self.name == "IQ3_XXS":
            return "IQ2_S"
        if role.startswith("ffn_down"):
            return self._down(base, layer)
        if role == "attn_output":
            return self._attention_output(base)
        if role == "attn_qkv":
            fused = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "IQ3_M": "Q4_K"}
            fused |= {"Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
            return fused.get(self.name, base)
        return base

    def _more(self, layer: int) -> bool:
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2

    def _output(self, base: str) -> str:
        if self.name == "MXFP4" or self.family == "falcon":
            return "Q8_0"
        if self.name in _LOW:
            return "Q5_K"
        return base if base == "Q8_0" else "Q6_K"

    def _values(self, base: str, layer: int) -> str:
        shared = self.queries_per_key >= 4
        wanted = {
            "Q2_K": "Q4_K" if shared else "Q3_K",
            "IQ3_XXS": "Q4_K" if shared else "IQ3_S",
            "IQ3_S": "Q4_K" if shared else base,
            "IQ3_M": "Q4_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ4_NL": "Q5_K" if shared else base,
            "IQ4_XS": "Q5_K" if shared else base,
            "Q4_K_M": "Q6_K" if self._more(layer) else base,
            "Q5_K_M": "Q6_K" if self._more(layer) else base,
            "Q4_K_S": "Q5_K" if layer < 4 else base,
        }.get(self.name, base)
        # eight query heads share one value head in the 80-layer models: worth a better type
        big = self.layers == 80 and shared and self.family in ("llama", "mistral", "qwen2", "")
        if big and wanted in ("Q3_K", "Q4_K"):
            wanted = "Q5_K"
        return "Q8_0" if self.experts == 8 else wanted

    def _down(self, base: str, layer: int) -> str:
        first, more, falcon = layer < self.layers // 8, self._more(layer), self.family == "falcon"
        start = layer < self.layers // 16
        usual = {
            "Q2_K": "Q3_K",
            "IQ3_XXS": "Q4_K" if first else "Q3_K",
            "Q3_K_M": "Q5_K" if start else "Q4_K" if not falcon or more else "Q3_K",
            "IQ3_M": "Q4_K" if first or (self.experts == 8 and more) else base,
            "Q3_K_L": "Q4_K" if falcon else "Q5_K",
            "Q4_K_M": "Q6_K" if more else base,
            "IQ4_NL": "Q5_K" if first else base,
            "IQ4_XS": "Q5_K" if first else base,
            "Q5_K_M": "Q6_K" if more else base,
            "Q4_K_S": "Q5_K" if first and not falcon else base,
        }
        if falcon and self.name == "Q4_K_M":
            return "Q6_K" if start else "Q5_K" if more else base
        return usual.get(self.name, base)

    def _attention_output(self, base: str) -> str:
        if self.family == "falcon":
            return "Q4_K" if self.name == "Q3_K_L" else base
        if self.experts == 8:
            return "Q5_K" if self.name in _EIGHT_EXPERTS_OUTPUT else base
        better = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
        return {**better, "IQ3_M": "Q4_K"}.get(self.name, base)


def _fitting(kind: str, columns: int) -> str:
    """`kind`, or what stands in for it where a row is no whole number of its blocks."""
    if columns % BLOCKS[kind][0]:
        kind = _FALLBACK.get(kind, "IQ4_NL" if BLOCKS[kind][0] == 256 else "F16")
    return kind if columns % BLOCKS[kind][0] == 0 else "F16"
