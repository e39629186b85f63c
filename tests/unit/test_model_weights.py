"""Weights derived from configs, held against what engines and checkpoints printed.

Sources: buffers that llama.cpp prints on loading (XiongjieDai/GPU-Benchmarks-on-LLM-Inference and
public logs), sizes of checkpoints as their hubs state them, vLLM's "model weights take".
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ModelInvalid
from orchestrator.models.config_json import rescale, spec_from_config
from orchestrator.models.gguf_mixes import BASE
from orchestrator.models.parameters import count
from orchestrator.models.quantization import matches, weight_parts

MIB, GIB = 1 << 20, 1 << 30


def config(
    architecture: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A config.json with what every one has."""
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        **more,
    }


LLAMA = "LlamaForCausalLM"
LLAMA_3_8B = config(LLAMA, 4096, 14336, 32, 32, 8, 128256)
LLAMA_3_70B = config(LLAMA, 8192, 28672, 80, 64, 8, 128256)
LLAMA_2_7B = config(LLAMA, 4096, 11008, 32, 32, 32, 32000)
LLAMA_2_13B = config(LLAMA, 5120, 13824, 40, 40, 40, 32000)
LLAMA_2_70B = config(LLAMA, 8192, 28672, 80, 64, 8, 32000)
LLAMA_32_1B = config(LLAMA, 2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True)
MISTRAL = config("MistralForCausalLM", 4096, 14336, 32, 32, 8, 32000)
MIXTRAL = config("MixtralForCausalLM", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8)
PHI_3_MINI = config("Phi3ForCausalLM", 3072, 8192, 32, 32, 32, 32064)
PHI_4 = config("Phi3ForCausalLM", 5120, 17920, 40, 40, 10, 100352)
PHI_2 = config("PhiForCausalLM", 2560, 10240, 32, 32, 32, 51200)
PHI_15 = config("PhiForCausalLM", 2048, 8192, 24, 32, 32, 51200)
QWEN_05B = config("Qwen2ForCausalLM", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True)
QWEN_7B = config("Qwen2ForCausalLM", 3584, 18944, 28, 28, 4, 152064)
SMOLLM_135M = config(LLAMA, 576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True)
QWEN3_8B = config("Qwen3ForCausalLM", 4096, 12288, 36, 32, 8, 151936, head_dim=128)
QWEN3_06B = config(
    "Qwen3ForCausalLM", 1024, 3072, 28, 16, 8, 151936, head_dim=128, tie_word_embeddings=True
)
QWEN3_30B = config(
    "Qwen3MoeForCausalLM", 2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128,
    num_experts_per_tok=8, moe_intermediate_size=768,
)  # fmt: skip
DEEPSEEK = config(
    "DeepseekV3ForCausalLM", 7168, 18432, 61, 128, 128, 129280, n_routed_experts=256,
    num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=1, first_k_dense_replace=3,
    q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
)  # fmt: skip
GPT_OSS = config(
    "GptOssForCausalLM", 2880, 2880, 24, 64, 8, 201088, head_dim=64, num_local_experts=32,
    num_experts_per_tok=4,
)  # fmt: skip
STARCODER2 = "Starcoder2ForCausalLM"

# config, file type, MiB on the device, MiB of the token table
BUFFERS = [
    (LLAMA_3_8B, "Q4_K_M", 4403.49, 281.81),
    (LLAMA_2_7B, "Q4_0", 3577.55, 70.31),
    (LLAMA_2_7B, "F16", 12603.02, 250.0),
    (LLAMA_2_13B, "Q4_0", 6936.01, 87.89),
    (LLAMA_2_13B, "F16", 24514.08, 312.5),
    (LLAMA_2_70B, "Q4_0", 36930.11, 140.62),
    (LLAMA_2_70B, "F16", 131065.03, 500.0),
    (MISTRAL, "Q4_K_M", 4095.05, 70.31),
    (PHI_2, "Q8_0", 2686.46, 132.81),
    (SMOLLM_135M, "Q2_K", 53.7, 28.7),  # tied: printed together, 82 MiB
]


@pytest.mark.parametrize(("model", "kind", "device", "table"), BUFFERS)
def test_llama_cpp_buffers_to_the_last_digit(
    model: dict[str, Any], kind: str, device: float, table: float
) -> None:
    parts = weight_parts(count(model), kind, format="gguf")
    assert (parts.total - parts.embedding) / MIB == pytest.approx(device, abs=0.06)
    assert parts.embedding / MIB == pytest.approx(table, abs=0.06)


@pytest.mark.parametrize(
    ("model", "kind", "whole", "tolerance"),
    [
        (MISTRAL, "Q4_0", 3917.87, 0.0001),
        (PHI_3_MINI, "Q4_K_M", 2281.66, 0.0001),
        (PHI_4, "Q4_K_M", 275.62 + 2622.81 + 5731.89, 0.0001),
        (QWEN_05B, "Q5_K_M", 394.95, 0.0001),
        (LLAMA_3_70B, "Q4_K_M", 39.59 * 1024, 0.001),
        (LLAMA_3_70B, "F16", 131.42 * 1024, 0.001),
        # of a quantizer that did not promote the experts' down projections yet
        (MIXTRAL, "Q5_K_M", 30649.55 + 85.94, 0.04),
    ],
)
def test_whole_gguf_files(model: dict[str, Any], kind: str, whole: float, tolerance: float) -> None:
    parts = weight_parts(count(model), kind, format="gguf")
    assert parts.total / MIB == pytest.approx(whole, rel=tolerance)


@pytest.mark.parametrize(
    "split",
    [
        {9: 1130.62, 17: 982.66, 25: 982.66, 32: 1307.55},
        {17: 2113.28, 32: 2290.21},
        {6: 764.06, 11: 616.09, 17: 733.12, 22: 616.09, 28: 733.12, 32: 940.99},
    ],
)
def test_each_layer_is_where_llama_cpp_put_it(split: dict[int, float]) -> None:
    parts = weight_parts(count(LLAMA_3_8B), "Q4_K_M", format="gguf")
    start = 0
    for end, printed in split.items():
        mib = sum(parts.layers[start:end]) / MIB
        mib += (parts.output + parts.other) / MIB if end == 32 else 0
        assert mib == pytest.approx(printed, abs=0.01)
        start = end


def test_a_part_of_phi_4_on_the_device() -> None:
    parts = weight_parts(count(PHI_4), "Q4_K_M", format="gguf")
    assert sum(parts.layers[-29:]) / MIB == pytest.approx(5731.89, abs=0.01)


@pytest.mark.parametrize(
    ("model", "precision", "gib", "tolerance"),
    [
        (LLAMA_3_8B, "BF16", 14.96, 0.001),
        (PHI_15, "FP16", 2.6419, 0.001),
        (QWEN3_06B, "BF16", 1.12, 0.01),
        (QWEN3_8B, "FP8", 8.9638, 0.03),
        (QWEN3_8B, "AWQ", 6098853560 / GIB, 0.01),
        (QWEN_7B, "AWQ", 5.2, 0.01),
        (LLAMA_3_70B, "FP8", 67.72, 0.01),
        (PHI_4, "NF4", 8.49, 0.01),
        (LLAMA_32_1B, "BF16", 2.3, 0.01),
        (GPT_OSS, "MXFP4", 25.63 / 2, 0.001),  # the hub counts these files twice
        (DEEPSEEK, "BF16", 671.026e9 * 2 / GIB, 0.001),
        (QWEN3_30B, "BF16", 30.532e9 * 2 / GIB, 0.001),
        (config(STARCODER2, 3072, 12288, 30, 24, 2, 49152, tie_word_embeddings=True), "BF16",
         3.030e9 * 2 / GIB, 0.001),
    ],
)  # fmt: skip
def test_checkpoints(model: dict[str, Any], precision: str, gib: float, tolerance: float) -> None:
    parts = weight_parts(count(model), precision)
    assert parts.total / GIB == pytest.approx(gib, rel=tolerance)


def test_active_parameters() -> None:
    assert count(QWEN3_30B).active / 1e9 == pytest.approx(3.35, abs=0.1)
    assert count(DEEPSEEK).active / 1e9 == pytest.approx(37, abs=1)
    assert count(LLAMA_3_8B).active == count(LLAMA_3_8B).total


def test_modules_left_alone_stay_in_16_bit() -> None:
    plain = weight_parts(count(LLAMA_3_8B), "AWQ")
    kept = weight_parts(count(LLAMA_3_8B), "AWQ", config={"modules_to_not_convert": ["self_attn"]})
    first = weight_parts(count(LLAMA_3_8B), "AWQ", config={"ignore": ["model.layers.0."]})
    assert kept.total > plain.total
    assert first.layers[0] > 3 * first.layers[1]
    assert first.layers[1:] == plain.layers[1:]
    assert matches("re:.*self_attn.*", "attn_q", 3)
    assert matches(r"re:model\.layers\.3\.mlp.*", "ffn_up", 3)
    assert not matches("re:.*linear_attn.*", "attn_q", 3)


def test_group_size_and_bits_of_the_config_count() -> None:
    counted = count(LLAMA_3_8B)
    usual = weight_parts(counted, "GPTQ").total
    assert weight_parts(counted, "GPTQ", config={"group_size": 32}).total > usual
    assert weight_parts(counted, "GPTQ", config={"bits": 8}).total > 1.5 * usual
    assert weight_parts(counted, "GPTQ", config={"group_size": -1}).total < usual


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelInvalid, match=key):
        count({**LLAMA_3_8B, key: None})


@pytest.mark.parametrize("value", [-1, 1 << 50, "many", True, 2.5])
def test_absurd_numbers_are_refused(value: object) -> None:
    with pytest.raises(ModelInvalid, match="hidden_size"):
        count({**LLAMA_3_8B, "hidden_size": value})
    with pytest.raises(ModelInvalid, match="num_hidden_layers"):
        count({**LLAMA_3_8B, "num_hidden_layers": 1 << 30})


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelInvalid, match="NVFP4"):
        weight_parts(count(LLAMA_3_8B), "Q9_Z")
    with pytest.raises(ModelInvalid, match="GGUF file type"):
        weight_parts(count(LLAMA_3_8B), "AWQ", format="gguf")


small = st.builds(
    config,
    st.sampled_from([LLAMA, "Qwen2ForCausalLM", "Phi3ForCausalLM", STARCODER2, "UnheardOf"]),
    st.integers(1, 16).map(lambda n: n * 64),
    st.integers(1, 64).map(lambda n: n * 32),
    st.integers(1, 40),
    st.just(8),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 5000),
    tie_word_embeddings=st.booleans(),
    head_dim=st.sampled_from([32, 64, 128]),
)
PRECISIONS = st.sampled_from(["FP32", "BF16", "FP8", "AWQ", "GPTQ", "NVFP4", "NF4", *BASE])


@settings(max_examples=60, deadline=None)
@given(small, PRECISIONS)
def test_no_precision_is_larger_than_32_bit(model: dict[str, Any], precision: str) -> None:
    counted = count(model)
    parts = weight_parts(counted, precision)
    assert 0 < parts.total <= 4 * counted.total
    assert len(parts.layers) == model["num_hidden_layers"]
    assert parts.experts <= sum(parts.layers)


@settings(max_examples=60, deadline=None)
@given(small, st.integers(0, 1 << 45), st.booleans())
def test_rescaled_parts_add_up_to_the_byte(model: dict[str, Any], size: int, towers: bool) -> None:
    assert rescale(weight_parts(count(model), "BF16"), size, towers).total == size


WILD = {
    "layer_types": ["sliding_attention"], "layer_types_count": {"full_attention": 3},
    "mlp_only_layers": [1], "rope_scaling": {"factor": 2.0}, "sliding_window": 64,
    "vision_config": {"hidden_size": 8, "num_hidden_layers": 2}, "quantization_config": {},
    "hybrid_override_pattern": "M*-E", "architectures": ["JambaForCausalLM"], "text_config": {},
    "attn_type_list": [0, 1], "torch_dtype": "float16", "sliding_window_indices": "[1, 0]",
    "attn_layer_period": 3, "full_attention_interval": 2, "max_window_layers": 1,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*sorted(WILD), "factor", "bits"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted({*DEEPSEEK, *WILD})), JSON, min_size=1, max_size=4))
def test_any_config_is_read_or_refused(changes: dict[str, Any]) -> None:
    for base in (DEEPSEEK, {**QWEN3_30B, **WILD}):
        try:
            spec_from_config({**base, **changes}, model_id="x", source="hf://a/x")
        except ModelInvalid:
            continue
