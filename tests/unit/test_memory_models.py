"""The memory models against published rows (their ids are those of `bench/planner/data`).

vLLM: cache per rank within 0.2 GiB or 1 % of the card once the weights are known. llama.cpp: KV
within 1 MiB, compute buffers within 5 %.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_launchers import llama_memory, vllm_memory
from engine_launchers.caches import bytes_per_token, longest_context, sequence_bytes
from engine_launchers.model import CacheGroup, ModelSpec
from orchestrator.models.config_json import spec_from_config
from tests.plans import artefact, catalog, variants

MIB, GIB = 2**20, 2**30


def spec(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int,
    quantization: str = "BF16", kind: Any = "safetensors", **more: Any,
) -> ModelSpec:  # fmt: skip
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "vocab_size": vocab, "max_position_embeddings": 131072, "tie_word_embeddings": False,
        **more,
    }  # fmt: skip
    return spec_from_config(
        config, model_id="m", source="/m", quantization=quantization, format=kind
    )


LLAMA_8B = spec(4096, 14336, 32, 32, 8, 128256)
LLAMA_70B_FP8 = spec(8192, 28672, 80, 64, 8, 128256, "FP8")
QWEN3_32B = spec(5120, 25600, 64, 64, 8, 151936, head_dim=128)
QWEN3_06B = spec(1024, 3072, 28, 16, 8, 151936, head_dim=128, tie_word_embeddings=True)
PHI4_MINI = spec(3072, 8192, 32, 24, 8, 200064, tie_word_embeddings=True)
H100 = 79.18


def run(version: tuple[int, int], length: int, *, tp: int = 1, v1: bool = True) -> vllm_memory.Run:
    return vllm_memory.Run(
        version=version, v1=v1, tensor_parallel=tp, utilization=0.9, max_model_len=length
    )


@pytest.mark.parametrize(
    ("row", "model", "ran", "total", "weights", "peak", "kv"),
    [
        ("vllm-10517-a", LLAMA_8B, run((0, 6), 20000, v1=False), 23.58, 14.9888, 2.07, 3.81),
        ("vllm-10517-b", LLAMA_8B, run((0, 6), 29000, v1=False), 23.58, 14.9888, 2.99, 2.89),
        ("llmd-l31-8b", LLAMA_8B, run((0, 11), 16000), H100, 14.99, 4.76, 51.38),
        ("llmd-q3-06b", QWEN3_06B, run((0, 11), 16000), H100, 1.12, 5.56, 64.45),
        ("llmd-q3-32b-tp1", QWEN3_32B, run((0, 11), 16000), H100, 61.03, 5.64, 4.45),
        ("llmd-q3-32b-tp2", QWEN3_32B, run((0, 11), 16000, tp=2), H100, 30.59, 5.64, 34.49),
        ("llmd-l33-70b-fp8-tp1", LLAMA_70B_FP8, run((0, 11), 16000), H100, 67.72, 4.84, -1.44),
        ("fs-phi4mini-a100-40", PHI4_MINI, run((0, 7), 2048, v1=False), 39.56, 7.17, 1.83, 26.6),
    ],
)
def test_vllm_rows(
    row: str, model: ModelSpec, ran: vllm_memory.Run, total: float, weights: float, peak: float,
    kv: float,
) -> None:  # fmt: skip
    budget = vllm_memory.budget(model, ran, total * GIB, weights=weights * GIB)
    assert abs(budget.kv / GIB - kv) <= max(0.2, 0.01 * total), row
    assert budget.activations / GIB == pytest.approx(peak, rel=0.05), row
    refused = vllm_memory.refusal(model, ran, budget.kv, total * GIB)
    assert bool(refused) == (row in {"vllm-10517-b", "llmd-l33-70b-fp8-tp1"}), refused


def test_weights_per_rank_as_printed() -> None:
    one = vllm_memory.Run()
    assert vllm_memory.rank_weights(LLAMA_8B, one) / GIB == pytest.approx(14.99, rel=0.01)
    assert vllm_memory.rank_weights(QWEN3_32B, one) / GIB == pytest.approx(61.03, rel=0.01)
    two = vllm_memory.Run(tensor_parallel=2)
    assert vllm_memory.rank_weights(QWEN3_32B, two) / GIB == pytest.approx(30.59, rel=0.01)


def test_cache_per_token_as_printed() -> None:
    """Bytes per token of one rank, as token counts in logs give them."""
    assert bytes_per_token(LLAMA_8B) == 128 * 1024
    assert bytes_per_token(QWEN3_06B) == 112 * 1024
    assert bytes_per_token(artefact("starcoder2-3b", "BF16")) == 30 * 1024
    assert bytes_per_token(artefact("phi-4", "BF16")) == 200 * 1024
    assert bytes_per_token(variants("qwen3-235b-a22b")[0], ranks=4) == 47 * 1024


def test_a_latent_cache_is_whole_on_every_rank() -> None:
    """Row vllm-15871: 0.949 GiB for 32768 tokens of a 27-layer model, whatever the ranks."""
    model = LLAMA_8B.model_copy(
        update={"caches": (CacheGroup(layers=27, kind="latent", latent_dim=512 + 64),)}
    )
    for ranks in (1, 2, 8):
        ran = vllm_memory.Run(tensor_parallel=ranks)
        assert vllm_memory.request_bytes(model, ran, 32768) / GIB == pytest.approx(0.949, abs=0.001)


def test_a_long_request_as_printed() -> None:
    """Row recipes-12-09: 62.00 GiB for 262144 tokens of 62 layers with 8 KV heads."""
    wide = spec(6144, 2560, 62, 96, 8, 151936, head_dim=128)
    need = vllm_memory.request_bytes(wide, vllm_memory.Run(), 262_144)
    assert need / GIB == pytest.approx(62.0, abs=0.01)


Q4 = spec(4096, 14336, 32, 32, 8, 128256, "Q4_K_M", "gguf")


@pytest.mark.parametrize(
    ("row", "cards", "kv", "compute"),
    [
        ("xj-m-effa8805", 1, [1024], 560.0),
        ("xj-m-05d3ec89", 2, [544, 480], 640.01),
        ("xj-m-0a46a668", 4, [288, 256, 256, 224], 640.01),
    ],
)
def test_llama_8b_over_cards(row: str, cards: int, kv: list[int], compute: float) -> None:
    host, devices = llama_memory.buffers(Q4, llama_memory.Run(context=8192, devices=cards))
    assert [device.kv / MIB for device in devices] == pytest.approx(kv, abs=1), row
    assert all(d.compute / MIB == pytest.approx(compute, rel=0.05) for d in devices)
    assert host.weights / MIB == pytest.approx(281.81, rel=0.01)
    assert sum(d.weights for d in devices) / MIB == pytest.approx(4403.49, rel=0.01)


def test_partial_offload_as_printed() -> None:
    """Row fs-phi4-q4km-partial: 29 of 41 layers take 5731.89 MiB and 290 MiB of KV."""
    model = spec(5120, 17920, 40, 40, 10, 100352, "Q4_K_M", "gguf",
                 architectures=["Phi3ForCausalLM"])  # fmt: skip
    ran = llama_memory.Run(context=2048, gpu_layers=29, today=False)
    host, (card,) = llama_memory.buffers(model, ran)
    assert card.weights / MIB == pytest.approx(5731.89, rel=0.015)
    assert card.kv / MIB == pytest.approx(290, abs=1)
    assert host.kv / MIB == pytest.approx(110, abs=1)


def test_on_the_cpu_as_printed() -> None:
    """Row fs-phi3-mini-q4km-cpu: 768 MiB of KV and 168.01 MiB of compute at 2048 tokens."""
    model = spec(3072, 8192, 32, 32, 32, 32064, "Q4_K_M", "gguf",
                 architectures=["Phi3ForCausalLM"])  # fmt: skip
    host, cards = llama_memory.buffers(model, llama_memory.Run(context=2048, devices=0))
    assert cards == ()
    assert host.kv / MIB == pytest.approx(768, abs=1)
    assert host.compute / MIB == pytest.approx(168.01, rel=0.05)


# --- properties ---------------------------------------------------------------------------------

EVERY = tuple(model for name in catalog().names() for model in variants(name))
MODEL = st.sampled_from(EVERY)
GGUF = st.sampled_from([model for model in EVERY if model.format == "gguf"])
TOKENS = st.integers(1, 262_144)


@given(model=MODEL, a=TOKENS, b=TOKENS, ranks=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=300, deadline=None)
def test_more_context_is_never_less_and_more_ranks_are_never_more(
    model: ModelSpec, a: int, b: int, ranks: int
) -> None:
    low, high = sorted((a, b))
    assert sequence_bytes(model, low) <= sequence_bytes(model, high)
    assert sequence_bytes(model, high, ranks=ranks) <= sequence_bytes(model, high)
    assert sequence_bytes(model, high, "fp8") <= sequence_bytes(model, high)
    ran = vllm_memory.Run(tensor_parallel=ranks)
    assert vllm_memory.request_bytes(model, ran, low) <= vllm_memory.request_bytes(model, ran, high)


@given(model=MODEL, room=st.floats(0, 2**36), limit=TOKENS, seqs=st.integers(1, 64))
@settings(max_examples=300, deadline=None)
def test_the_longest_context_fits_and_one_more_token_does_not(
    model: ModelSpec, room: float, limit: int, seqs: int
) -> None:
    found = longest_context(model, room, limit, sequences=seqs)
    assert 0 <= found <= limit
    if found:
        assert seqs * sequence_bytes(model, found) <= room
    if found < limit:
        assert seqs * sequence_bytes(model, found + 1) > room


@given(
    model=GGUF,
    context=st.integers(512, 32768),
    layers=st.integers(-1, 130),
    devices=st.integers(0, 8),
    flash=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_every_byte_lies_somewhere_once(
    model: ModelSpec, context: int, layers: int, devices: int, flash: bool
) -> None:
    ran = llama_memory.Run(
        context=context, gpu_layers=layers, devices=devices, flash_attention=flash
    )
    layout = llama_memory.Layout.of(model)
    where = llama_memory.placement(len(layout.parts.layers), ran)
    count = layout.layers
    wanted = 0 if devices == 0 else count if layers < 0 else min(layers, count)
    assert len(where) == count
    assert sum(1 for place in where if place >= 0) == wanted
    assert list(where) == sorted(where)
    host, cards = llama_memory.buffers(model, ran)
    copied = layout.parts.embedding if not layout.parts.output and where[-1] >= 0 else 0
    held = host.weights + sum(card.weights for card in cards)
    assert held == pytest.approx(layout.parts.total + copied)
    everything = llama_memory.buffers(model, llama_memory.Run(context=context, devices=0))[0]
    assert host.kv + sum(card.kv for card in cards) == pytest.approx(everything.kv)
    longer = llama_memory.Run(
        context=context + 256, gpu_layers=layers, devices=devices, flash_attention=flash
    )
    more_host, more_cards = llama_memory.buffers(model, longer)
    assert more_host.total >= host.total
    assert all(m.total >= c.total for m, c in zip(more_cards, cards, strict=True))


@given(
    model=st.sampled_from([m for m in EVERY if m.format == "safetensors"]),
    seqs=st.sampled_from([1, 32, 256, 1024]),
    share=st.floats(0.1, 1.0),
    total=st.sampled_from([8, 24, 80, 192]),
)
@settings(max_examples=200, deadline=None)
def test_the_budget_adds_up(model: ModelSpec, seqs: int, share: float, total: int) -> None:
    ran = vllm_memory.Run(utilization=share, max_num_seqs=seqs)
    b = vllm_memory.budget(model, ran, total * GIB)
    parts = b.weights + b.activations + b.non_torch + b.graphs + b.kv
    assert parts == pytest.approx(b.requested)
    wider = vllm_memory.budget(model, vllm_memory.Run(utilization=share, max_num_seqs=2 * seqs),
                               total * GIB)  # fmt: skip
    assert wider.kv <= b.kv
    two = vllm_memory.Run(tensor_parallel=2)
    assert vllm_memory.rank_weights(model, two) <= vllm_memory.rank_weights(
        model, vllm_memory.Run()
    )
