"""From a Hugging Face config.json to a ModelSpec. Pure: the reading of files is elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from engine_launchers.model import ModelFormat, ModelSpec, WeightParts
from orchestrator.errors import ModelInvalid
from orchestrator.models.caches import cache_groups
from orchestrator.models.facts import HEADS, INTERMEDIATE, VOCAB, Facts
from orchestrator.models.layer_kinds import kinds, window
from orchestrator.models.parameters import ParameterCount, count
from orchestrator.models.quantization import known, weight_parts

Dtype = Literal["bfloat16", "float16", "float32"]

_OF_DTYPE = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}

# Word in a quantization_config -> name, first match wins.
_METHODS = (
    ("nvfp4", "NVFP4"),
    ("mxfp4", "MXFP4"),
    ("awq", "AWQ"),
    ("gptq", "GPTQ"),
    ("fp8", "FP8"),
    ("float-quantized", "FP8"),
    ("pack-quantized", "GPTQ"),
    ("int-quantized", "INT8"),
    ("mixed_precision", "NVFP4"),
)

# Families of which llama.cpp keeps a window; of the others it keeps every token.
_WINDOWED = ("gemma2", "gemma3", "gemma4", "gptoss", "cohere2", "exaone4", "llama4", "smallthinker")

# What a repository's name says where its config has no quantization_config of its own.
_BY_SUFFIX = r"(?:^|[-_./])(awq|gptq|fp8|nvfp4|mxfp4|bnb-4bit|nf4|int8|w8a8|w4a16)(?:$|[-_./])"
_SUFFIX_NAMES = {"bnb-4bit": "NF4", "w8a8": "INT8", "w4a16": "GPTQ"}

# Where a config names no architecture, the repository's name often does.
_BY_NAME = (
    (r"qwen-?3.*(a\d+b)", "Qwen3MoeForCausalLM"),
    (r"qwen-?3", "Qwen3ForCausalLM"),
    (r"qwen-?2", "Qwen2ForCausalLM"),
    (r"gemma-?2", "Gemma2ForCausalLM"),
    (r"gemma-?3", "Gemma3ForCausalLM"),
    (r"phi-?[12]", "PhiForCausalLM"),
    (r"phi-?[34]", "Phi3ForCausalLM"),
    (r"mixtral", "MixtralForCausalLM"),
    (r"mistral", "MistralForCausalLM"),
    (r"starcoder2", "Starcoder2ForCausalLM"),
    (r"falcon", "FalconForCausalLM"),
    (r"llama", "LlamaForCausalLM"),
)


def spec_from_config(
    config: Mapping[str, Any],
    *,
    model_id: str,
    source: str,
    weight_bytes: int | None = None,
    quantization: str | None = None,
    format: ModelFormat = "safetensors",
) -> ModelSpec:
    """Describe the model with this config.json.

    `weight_bytes` is the size of all tensors where it is known: the parts are then made to add up
    to it, and a config too short to count from will do. `quantization` overrides what the config
    says. Raises ModelInvalid naming the key that is missing or absurd.
    """
    config = _named(config, model_id)
    facts = Facts(config)
    dtype = activation_dtype(facts)
    precision = quantization or quantization_name(facts, model_id)
    counted = _count(config, weight_bytes, model_id)
    parts = _parts(facts, counted, precision, format, weight_bytes, model_id)
    total = weight_bytes if weight_bytes is not None else parts.total if parts else 0
    if format == "gguf" and not facts.is_a(*_WINDOWED):
        facts.values["use_sliding_window"] = False
    groups = cache_groups(facts, "float32" if format == "gguf" else dtype)
    slides = any(group.kind == "sliding" for group in groups)
    tower = facts.mapping("vision_config")
    try:
        return ModelSpec(
            id=model_id,
            source=source,
            format=format,
            architecture=facts.architecture or "unknown",
            params=counted.total if counted else _guess(total, precision),
            active_params=counted.active
            if counted and counted.expert_count
            else facts.number("active_params") or None,
            layers=facts.layers,
            hidden=facts.hidden,
            intermediate=facts.number(INTERMEDIATE) or facts.number("moe_intermediate_size"),
            heads=facts.need(HEADS) if "full" in kinds(facts) or slides else facts.heads,
            kv_heads=facts.kv_heads,
            head_dim=facts.head_dim,
            context_max=context(facts),
            vocab=facts.number(VOCAB),
            caches=groups,
            sliding_window=window(facts) if slides else None,
            experts=facts.experts or None,
            experts_used=facts.experts_used or None,
            tied_embeddings=facts.tied,
            vision_heads=Facts(tower).number(("num_attention_heads", "num_heads")) or None,
            dtype=dtype,
            quantization=precision,
            weight_bytes=total,
            weights=parts,
        )
    except ValidationError as error:
        raise ModelInvalid(f"{model_id}: the config contradicts itself: {error}") from error


def quantization_name(facts: Facts, model_id: str = "") -> str:
    """The artefact's precision: by its quantization_config, its name, or its dtype."""
    config = facts.mapping("quantization_config") or facts.mapping("compression_config")
    method = str(config.get("quant_method", "")).lower()
    if method == "bitsandbytes":
        return "INT8" if config.get("load_in_8bit") else "NF4"
    words = " ".join(
        str(each).lower()
        for each in (
            method,
            config.get("quant_algo", ""),
            config.get("format", ""),
            facts.values.get("kaito_quantMethod", ""),
        )
    )
    for word, name in _METHODS:
        if word in words:
            return name
    if method and method != "compressed-tensors":
        return re.sub(r"[^A-Z0-9]", "", method.upper())[:16] or "UNKNOWN"  # no engine takes it
    if "compressed-tensors" in words:
        return _compressed(config)
    named = re.search(_BY_SUFFIX, model_id.lower()[-200:])
    if named and not config:
        return _SUFFIX_NAMES.get(named[1], named[1].upper())
    return _OF_DTYPE[activation_dtype(facts)]


def _compressed(config: Mapping[str, Any]) -> str:
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            bits, floating = weights.get("num_bits"), weights.get("type") == "float"
            if bits == 8:
                return "FP8" if floating else "INT8"
            if bits == 4:
                return "NVFP4" if floating else "GPTQ"
    return "FP8"


def activation_dtype(facts: Facts) -> Dtype:
    """The type that activations are computed in; bfloat16 where the config is silent."""
    given = str(facts.values.get("torch_dtype") or facts.values.get("dtype") or "")
    for name in ("bfloat16", "float16", "float32"):
        if given.endswith(name):
            return name
    return "bfloat16"


def context(facts: Facts) -> int:
    """Longest sequence the model was made for, in tokens."""
    given = facts.number(
        ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
    )
    scaling = facts.mapping("rope_scaling")
    original = scaling.get("original_max_position_embeddings")
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor <= 1 << 20:
        return given or 2048
    if isinstance(original, int) and max(given, 1) <= original < 1 << 30:
        return min(int(original * factor), 1 << 30)
    return given or 2048


def _named(config: Mapping[str, Any], model_id: str) -> Mapping[str, Any]:
    if Facts(config).architecture:
        return config
    for pattern, architecture in _BY_NAME:
        if re.search(pattern, model_id.lower()[:200]):
            return {**config, "architectures": [architecture]}
    return config


def _count(
    config: Mapping[str, Any], weight_bytes: int | None, model_id: str
) -> ParameterCount | None:
    try:
        return count(config)
    except ModelInvalid as error:
        if weight_bytes is None:
            raise ModelInvalid(f"{model_id}: {error.message}") from error
        return None


def _parts(
    facts: Facts,
    counted: ParameterCount | None,
    precision: str,
    format: ModelFormat,
    weight_bytes: int | None,
    model_id: str,
) -> WeightParts | None:
    if counted and known(precision):
        quantized = facts.mapping("quantization_config")
        parts = weight_parts(counted, precision, format=format, config=quantized)
        return parts if weight_bytes is None else rescale(parts, weight_bytes, towers(facts))
    if weight_bytes is None:
        raise ModelInvalid(
            f"{model_id}: the size of {precision} weights cannot be derived; give weight_bytes"
        )
    table = min(facts.number(VOCAB) * facts.hidden * 2, weight_bytes // 4)
    head = 0 if facts.tied else table
    return WeightParts(
        embedding=table,
        output=head,
        layers=_spread(weight_bytes - table - head, [1] * facts.layers),
    )


def towers(facts: Facts) -> bool:
    """Whether the checkpoint may hold more than its language model: vision, extra heads."""
    return facts.architecture.endswith("ForConditionalGeneration") or bool(
        facts.number(("num_nextn_predict_layers", "mtp_num_hidden_layers"))
    )


def rescale(parts: WeightParts, total: int, towers: bool) -> WeightParts:
    """The same parts, adding up to `total` bytes.

    With `towers` an excess is what was not counted (a vision tower), so it goes to `other`; else
    every part grows or shrinks alike.
    """
    if parts.total == total or parts.total == 0:
        return parts
    if towers and total > parts.total:
        return parts.model_copy(update={"other": parts.other + total - parts.total})
    pieces = [parts.embedding, parts.output, parts.other, *parts.layers]
    embedding, output, other, *layers = _spread(total, pieces)
    experts = min(sum(layers), parts.experts * total // parts.total)
    return WeightParts(
        embedding=embedding, output=output, layers=tuple(layers), other=other, experts=experts
    )


def _spread(total: int, shares: list[int]) -> tuple[int, ...]:
    """`total` split in the ratio of `shares`, without losing a byte."""
    whole, before, seen = sum(shares), 0, 0
    found = []
    for share in shares:
        seen += share
        upto = total * seen // whole
        found.append(upto - before)
        before = upto
    return tuple(found)


def _guess(total: int, precision: str) -> int:
    """Parameters that so many bytes would hold."""
    bits = {"FP32": 32, "FP8": 8, "INT8": 8}
    four = ("AWQ", "GPTQ", "NVFP4", "MXFP4", "NF4")
    return total * 8 // (5 if precision in four else bits.get(precision, 16))
