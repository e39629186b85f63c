"""From config.json to a spec: caches, precision, context, and configs that are too short."""

from __future__ import annotations

from typing import Any

import pytest

from engine_launchers.model import ModelSpec
from orchestrator.errors import ModelInvalid
from orchestrator.models.config_json import spec_from_config
from tests.unit.test_model_weights import DEEPSEEK, LLAMA, LLAMA_3_8B, MISTRAL, QWEN3_30B, config


def spec(model: dict[str, Any], **more: Any) -> ModelSpec:
    return spec_from_config(model, model_id="some/model", source="hf://some/model", **more)


def cache(model: ModelSpec) -> list[tuple[str, int]]:
    return [(group.kind, group.layers) for group in model.cache_groups]


def per_token(model: ModelSpec) -> int:
    """KiB per token in 16 bit, all layers."""
    elements = sum(
        g.layers * (g.latent_dim or g.kv_heads * (g.head_dim + g.v_head_dim))
        for g in model.cache_groups
    )
    return elements * 2 // 1024


def test_a_plain_model_has_one_group_and_no_words_about_it() -> None:
    model = spec(LLAMA_3_8B)
    assert model.caches == ()
    assert (model.kv_heads, model.head_dim, per_token(model)) == (8, 128, 128)
    assert (model.quantization, model.dtype, model.vocab) == ("BF16", "bfloat16", 128256)
    assert model.weights
    assert model.weights.total == model.weight_bytes
    assert model.active_params is None


def test_latent_attention() -> None:
    model = spec(DEEPSEEK)
    assert cache(model) == [("latent", 61)]
    assert model.cache_groups[0].latent_dim == 576
    assert (model.experts, model.experts_used) == (256, 8)
    assert model.weights
    assert 0.9 < model.weights.experts / model.weight_bytes < 1


@pytest.mark.parametrize(
    ("architecture", "more", "expected"),
    [
        ("MistralForCausalLM", {"sliding_window": 4096}, [("sliding", 32)]),
        ("MistralForCausalLM", {"sliding_window": None}, [("full", 32)]),
        ("Starcoder2ForCausalLM", {"sliding_window": 4096}, [("sliding", 32)]),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 4096, "use_sliding_window": False},
            [("full", 32)],
        ),
        ("Gemma2ForCausalLM", {"sliding_window": 4096}, [("full", 16), ("sliding", 16)]),
        ("Gemma3ForCausalLM", {"sliding_window": 512}, [("full", 5), ("sliding", 27)]),
        (
            "Gemma3ForCausalLM",
            {"sliding_window": 512, "sliding_window_pattern": 4},
            [("full", 8), ("sliding", 24)],
        ),
        (
            "GptOssForCausalLM",
            {
                "sliding_window": 128,
                "layer_types": ["sliding_attention", "full_attention"] * 16,
            },
            [("full", 16), ("sliding", 16)],
        ),
        ("Phi3ForCausalLM", {"sliding_window": 262144}, [("full", 32)]),
    ],
)
def test_sliding_windows(
    architecture: str, more: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    model = spec({**MISTRAL, "architectures": [architecture], **more})
    assert cache(model) == expected
    slides = any(kind == "sliding" for kind, _ in expected)
    assert model.sliding_window == (more["sliding_window"] if slides else None)


def test_gemma_4_has_wide_global_layers_and_layers_that_keep_nothing() -> None:
    text = config(
        "Gemma4ForCausalLM", 2048, 8192, 35, 8, 1, 262144,
        head_dim=256, global_head_dim=512, num_global_key_value_heads=1, sliding_window=512,
        num_kv_shared_layers=20, tie_word_embeddings=True,
        layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 7,
    )  # fmt: skip
    model = spec({"architectures": ["Gemma4ForConditionalGeneration"], "text_config": text})
    assert cache(model) == [("full", 3), ("sliding", 12)]
    full, sliding = model.cache_groups
    assert (full.head_dim, sliding.head_dim, sliding.window) == (512, 256, 512)
    assert model.architecture == "Gemma4ForConditionalGeneration"


HYBRID = config(
    "Qwen3_5ForConditionalGeneration", 5120, 17408, 64, 24, 4, 248320, head_dim=256,
    full_attention_interval=4, linear_num_value_heads=48, linear_num_key_heads=16,
    linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
)  # fmt: skip


def test_linear_attention_keeps_a_state() -> None:
    model = spec(HYBRID)
    assert cache(model) == [("full", 16), ("state", 48)]
    # 3 columns of a 10240-wide convolution in 16 bit, 48 x 128 x 128 in 32 bit
    assert model.cache_groups[1].state_bytes == 3 * 10240 * 2 + 48 * 128 * 128 * 4
    assert model.hybrid
    short = {**HYBRID, "mamba_ssm_dtype": "bfloat16"}
    assert spec(short).cache_groups[1].state_bytes == 3 * 10240 * 2 + 48 * 128 * 128 * 2


def test_mamba_2_in_a_pattern_of_letters() -> None:
    model = spec(
        config(
            "NemotronHForCausalLM", 4480, 15680, 6, 40, 8, 131072, head_dim=128,
            hybrid_override_pattern="M-M*-M", mamba_num_heads=128, mamba_head_dim=80,
            ssm_state_size=128, n_groups=8, conv_kernel=4,
        )
    )  # fmt: skip
    assert cache(model) == [("full", 1), ("state", 3)]
    inner, conv = 128 * 80, 128 * 80 + 2 * 8 * 128
    assert model.cache_groups[1].state_bytes == 3 * conv * 2 + inner * 128 * 4


def test_jamba_and_granite() -> None:
    jamba = config(
        "JambaForCausalLM", 4096, 14336, 32, 32, 8, 65536, attn_layer_period=8,
        attn_layer_offset=4, num_experts=16, num_experts_per_tok=2, expert_layer_period=2,
        expert_layer_offset=1,
    )  # fmt: skip
    model = spec(jamba)
    assert cache(model) == [("full", 4), ("state", 28)]
    assert model.params / 1e9 == pytest.approx(51.6, abs=0.5)  # Jamba v0.1 as published
    granite = config(
        "GraniteMoeHybridForCausalLM", 1024, 2048, 4, 16, 4, 100352,
        layer_types=["mamba", "mamba", "attention", "mamba"], mamba_n_heads=32, mamba_d_head=64,
        mamba_d_state=128, mamba_d_conv=4,
    )  # fmt: skip
    assert cache(spec(granite)) == [("full", 1), ("state", 3)]


@pytest.mark.parametrize(
    ("quantized", "name"),
    [
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "fp8"}, "FP8"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "FP8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "NF4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "INT8"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "GPTQ"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "INT8"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "FP8"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "NVFP4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
            },
            "INT8",
        ),
        (None, "BF16"),
    ],
)
def test_precisions(quantized: dict[str, Any] | None, name: str) -> None:
    assert spec({**LLAMA_3_8B, "quantization_config": quantized}).quantization == name


def test_the_name_of_a_repository_tells_where_its_config_does_not() -> None:
    named = spec_from_config(LLAMA_3_8B, model_id="nvidia/Llama-3.1-8B-Instruct-FP8", source="x")
    assert named.quantization == "FP8"
    bare = {k: v for k, v in QWEN3_30B.items() if k != "architectures"}
    guessed = spec_from_config(bare, model_id="Qwen/Qwen3-30B-A3B", source="x")
    assert guessed.architecture == "Qwen3MoeForCausalLM"


def test_dtype_and_context() -> None:
    assert spec({**LLAMA_3_8B, "torch_dtype": "float16"}).quantization == "FP16"
    assert spec({**LLAMA_3_8B, "dtype": "torch.float32"}).dtype == "float32"
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert spec({**LLAMA_3_8B, "rope_scaling": yarn}).context_max == 131072
    llama = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    scaled = {**LLAMA_3_8B, "max_position_embeddings": 131072, "rope_scaling": llama}
    assert spec(scaled).context_max == 131072


def test_a_vision_tower_is_told_apart() -> None:
    seeing = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {k: v for k, v in LLAMA_3_8B.items() if k != "architectures"},
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    }
    model = spec(seeing)
    assert model.vision_heads == 16
    assert model.weights
    assert model.weights.other / 2e9 == pytest.approx(0.41, abs=0.02)  # SigLIP so400m
    given = spec(seeing, weight_bytes=model.weight_bytes + 1_000_000)
    assert given.weights
    assert given.weights.other == model.weights.other + 1_000_000
    assert given.weights.layers == model.weights.layers


def test_a_short_config_will_do_where_the_size_is_known() -> None:
    short = {
        "architectures": [LLAMA],
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": None,
        "vocab_size": None,
    }
    with pytest.raises(ModelInvalid, match=r"some/model: .*vocab_size"):
        spec(short)
    model = spec(short, weight_bytes=16_063_177_687)
    assert model.weights
    assert model.weights.total == 16_063_177_687
    assert model.params / 1e9 == pytest.approx(8.03, abs=0.01)


def test_the_given_size_is_kept_to_the_byte() -> None:
    model = spec(LLAMA_3_8B, weight_bytes=16_100_000_001)
    assert model.weights
    assert model.weights.total == model.weight_bytes == 16_100_000_001
