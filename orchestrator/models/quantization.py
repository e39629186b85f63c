"""From a model's tensors and the name of a precision to the bytes of its weights by place. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from engine_launchers.model import WeightParts
from orchestrator.errors import ModelInvalid
from orchestrator.models.blocks import Tensor
from orchestrator.models.gguf_mixes import BASE, Mix
from orchestrator.models.parameters import ParameterCount

FLOATS = {"FP32": 4, "FP16": 2, "BF16": 2}
_SIXTEEN = 2
_NEVER = ("token_embd", "per_layer_token_embd", "position_embd", "output")


@dataclass(frozen=True)
class Scheme:
    """How one safetensors precision stores a matrix.

    `bits` per element; `group` elements of a row share `group_bits` more (0: one group per row);
    `experts_only` for MXFP4, which leaves all but the routed experts alone; `skip` are words that
    a tensor's Hugging Face name may contain to stay in 16 bit.
    """

    bits: int
    group: int = 0
    group_bits: Fraction = Fraction(0)
    experts_only: bool = False
    skip: tuple[str, ...] = ()

    def size(self, tensor: Tensor, layer: int = 0) -> int:
        """Bytes of `tensor` of `layer`."""
        if not self._touches(tensor, layer):
            return tensor.size * _SIXTEEN
        groups = -(-tensor.cols // self.group) if self.group else 1
        extra = self.group_bits * groups * tensor.rows * tensor.copies
        return tensor.size * self.bits // 8 + int(extra / 8)

    def _touches(self, tensor: Tensor, layer: int) -> bool:
        if tensor.plain or tensor.role in _NEVER or (self.experts_only and not tensor.expert):
            return False
        return not any(matches(word, tensor.role, layer) for word in self.skip)


def _schemes() -> dict[str, Scheme]:
    return {
        "FP8": Scheme(8, 0, Fraction(32)),
        "INT8": Scheme(8, 0, Fraction(32)),
        "AWQ": Scheme(4, 128, Fraction(16 + 4)),
        "GPTQ": Scheme(4, 128, Fraction(16 + 4)),
        "NVFP4": Scheme(4, 16, Fraction(8)),
        "MXFP4": Scheme(4, 32, Fraction(8), experts_only=True),
        # two levels: an 8-bit scale per 64, a 32-bit scale per 256 of those
        "NF4": Scheme(4, 64, Fraction(8) + Fraction(32, 256)),
    }


def known(quantization: str) -> bool:
    """Whether the bytes of this precision can be derived."""
    return quantization in FLOATS or quantization in BASE or quantization in _schemes()


def weight_parts(
    count: ParameterCount,
    quantization: str,
    *,
    format: str = "safetensors",
    config: Mapping[str, Any] | None = None,
    tied: bool | None = None,
) -> WeightParts:
    """Bytes by place of `count`'s tensors in `quantization`.

    `config` is a quantization_config: group size, bits, modules left alone. `tied=True` drops the
    head. Raises ModelInvalid for a precision that is not known.
    """
    sized = _sizer(count, quantization, format, config or {})
    head = () if tied else count.head
    # llama.cpp keeps a vision tower in a file of its own
    rest = [each for each in count.rest if format != "gguf" or not each.role.startswith("vision")]
    layers = tuple(_sum(sized, block, i) for i, block in enumerate(count.blocks))
    experts = sum(
        sized(each, i) for i, block in enumerate(count.blocks) for each in block if each.expert
    )
    return WeightParts(
        embedding=_sum(sized, count.table, 0),
        output=_sum(sized, head, 0),
        layers=layers,
        other=_sum(sized, rest, 0),
        experts=experts,
    )


class _Floats:
    """All tensors in one floating type."""

    def __init__(self, width: int) -> None:
        self.width = width

    def size(self, tensor: Tensor, layer: int = 0) -> int:
        return tensor.size * self.width


def _sizer(
    count: ParameterCount, quantization: str, format: str, config: Mapping[str, Any]
) -> Any:  # a callable of (tensor, layer); mypy cannot name the union of bound methods
    if format == "gguf" or (quantization in BASE and quantization not in (*FLOATS, "MXFP4")):
        name = {"FP32": "F32", "FP16": "F16"}.get(quantization, quantization)
        if name not in BASE:
            raise ModelInvalid(f"the GGUF file type {quantization!r} is not known")
        return Mix.of(name, count).size
    if quantization in FLOATS:
        return _Floats(FLOATS[quantization]).size
    scheme = _schemes().get(quantization)
    if scheme is None:
        raise ModelInvalid(
            f"the precision {quantization!r} is not known: known are "
            + ", ".join([*FLOATS, *_schemes(), *BASE])
        )
    return _configured(scheme, quantization, config).size


def _configured(scheme: Scheme, name: str, config: Mapping[str, Any]) -> Scheme:
    group, bits = config.get("group_size"), config.get("bits")
    if name in ("AWQ", "GPTQ"):
        wide = bits if isinstance(bits, int) and bits in (2, 3, 4, 8) else scheme.bits
        size = group if isinstance(group, int) and 0 < group <= 1 << 16 else scheme.group
        scheme = Scheme(wide, 0 if group == -1 else size, scheme.group_bits)
    listed: list[str] = []
    for key in ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules"):
        value = config.get(key)
        if isinstance(value, list):
            listed += [str(each)[:256] for each in value[:4096]]
    if name == "NVFP4" and not listed:
        # Published NVFP4 checkpoints whose size is known (Qwen3.8-27B, Gemma-4-31B) keep their
        # self-attention in 16 bit, though the config that was seen of them does not say so.
        listed = ["self_attn"]
    return Scheme(scheme.bits, scheme.group, scheme.group_bits, scheme.experts_only, tuple(listed))


# llama.cpp's role -> the name of the module in a Hugging Face model, below `model.layers.N.`
_MODULES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj", "attn_kv_a": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_b": "self_attn.kv_b_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_gate_exps": "mlp.experts.0.gate_proj",
    "ffn_up_exps": "mlp.experts.0.up_proj", "ffn_down_exps": "mlp.experts.0.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj", "ssm_out": "linear_attn.out_proj",
    "attn_gate": "linear_attn.in_proj_z", "ssm_in": "mixer.in_proj",
    "ssm_beta_alpha": "linear_attn.in_proj_ba",
}  # fmt: skip
_PREFIX = "model.layers."


def matches(word: str, role: str, layer: int) -> bool:
    """Whether an entry of modules_to_not_convert (plain, or `re:` with `.*`) names this tensor.

    `re:` entries are compared piece by piece between their `.*`, never run as expressions: they
    come from a downloaded file.
    """
    module = f"{_PREFIX}{layer}.{_MODULES.get(role, role)}"
    if not word.startswith("re:"):
        return word in module
    at = 0
    for piece in word[3:].replace("\\", "").strip("^$").split(".*"):
        at = module.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def _sum(sized: Any, tensors: Iterable[Tensor], layer: int) -> int:
    return sum(sized(each, layer) for each in tensors)
