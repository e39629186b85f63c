"""The documents' decision matrix, row by row, with real cards: engine, precision and tier."""

from __future__ import annotations

import pytest

from engine_launchers.base import EnginePlan
from orchestrator.errors import NoEngineFits
from tests.plans import GIB, MISTRAL, advised, artefact, box, planned

ROWS = [
    # card, tier, engine, artefact, plan id
    ("none", "CPU_ONLY", "llama_server", "Q4_K_M", "llama-server-q4-k-m-tp1"),
    ("RTX 2060", "LOW_VRAM", "llama_server", "Q4_K_M", "llama-server-q4-k-m-tp1"),
    ("RTX 4060", "CONSUMER", "vllm", "AWQ", "vllm-awq-tp1"),
    ("RTX 4070", "CONSUMER", "vllm", "AWQ", "vllm-awq-tp1"),
    ("RTX 3090", "PROSUMER", "vllm", "BF16", "vllm-fp16-tp1"),
    ("RTX 4090", "PROSUMER", "vllm", "BF16", "vllm-fp16-tp1"),
    ("A100 40GB", "DATACENTER", "vllm", "BF16", "vllm-bf16-tp1"),
    ("A100 80GB", "DATACENTER", "vllm", "BF16", "vllm-bf16-tp1"),
    ("H100", "DATACENTER", "vllm", "BF16", "vllm-bf16-tp1"),
    ("RTX 4090:2", "MULTI_GPU", "vllm", "BF16", "vllm-fp16-tp2"),
    ("H100:8", "MULTI_GPU", "vllm", "BF16", "vllm-fp16-tp8"),
]


@pytest.mark.parametrize(("gpu", "tier", "engine", "precision", "name"), ROWS)
def test_each_row_of_the_matrix(
    gpu: str, tier: str, engine: str, precision: str, name: str
) -> None:
    plan = advised(MISTRAL, box(gpu))
    assert (plan.tier, plan.engine, plan.model.quantization) == (tier, engine, precision)
    assert plan.id == name


def limits(plan: EnginePlan) -> tuple[int | None, int | None]:
    return plan.tuning.max_model_len, plan.tuning.max_concurrency


@pytest.mark.parametrize(
    ("gpu", "context", "batch"),
    [
        ("none", 2048, 4),  # the documents' 1 is what the Python server can
        ("RTX 2060", 4096, 2),  # a third full context does not fit
        ("RTX 4060", 8192, 8),
        ("RTX 4090", 16384, 32),
        ("A100 80GB", 32768, 128),
        ("RTX 4090:2", 32768, 128),
    ],
)
def test_context_and_batch_are_the_tiers_where_they_fit(gpu: str, context: int, batch: int) -> None:
    assert limits(planned(MISTRAL, box(gpu))) == (context, batch)


def test_16_bit_that_a_16_gb_card_cannot_hold_is_refused_with_its_number() -> None:
    plan = planned(MISTRAL, box("RTX 4080"))
    assert (plan.tier, plan.engine, plan.model.quantization) == ("PROSUMER", "vllm", "FP8")
    (refusal,) = (r for r in plan.rejected if r.what == "vllm BF16 on 1 GPU")
    weights = artefact(MISTRAL, "BF16").weight_bytes
    assert refusal.unit == "bytes"
    assert refusal.need is not None
    assert refusal.have is not None
    assert weights < refusal.need < weights + 2 * GIB
    assert refusal.have < 15 * GIB < refusal.need + GIB
    assert "needs 14.31 GiB" in refusal.why
    assert any("a step down from the tier's FP16" in reason for reason in plan.reasons)


def test_the_next_best_without_fp8_kernels_is_4_bit_on_the_same_engine() -> None:
    plan = planned(MISTRAL, box("A4000"))  # 16 GB, compute capability 8.6
    assert (plan.tier, plan.engine) == ("PROSUMER", "vllm")
    assert plan.model.quantization in {"AWQ", "GPTQ"}
    why = {r.what: r.why for r in plan.rejected}
    assert "needs compute capability 8.9" in why["vllm FP8 on 1 GPU"]
    assert "GiB" in why["vllm BF16 on 1 GPU"]


def test_16_bit_of_7b_pinned_on_12_gb_falls_to_the_engine_that_can_spill() -> None:
    plan = planned(MISTRAL, box("RTX 4070"), quantization="none")
    why = {r.what: r.why for r in plan.rejected}
    assert "needs 14.31 GiB on each GPU before any cache" in why["vllm BF16 on 1 GPU"]
    assert plan.engine == "pytorch"
    assert plan.model.quantization in {"BF16", "FP16"}
    assert any("stay in RAM" in reason for reason in plan.reasons)
    for other in ("AWQ", "Q4_K_M", "FP8"):
        assert "quantization none was asked" in why[other]


def test_16_bit_pinned_on_12_gb_and_too_little_ram_is_refused_with_every_number() -> None:
    with pytest.raises(NoEngineFits) as refused:
        planned(MISTRAL, box("RTX 4070", ram_gb=4), quantization="none", force_backend="vllm")
    assert "14.31 GiB" in refused.value.message
    with pytest.raises(NoEngineFits, match=r"pytorch .*needs 1\d\.\d\d GiB"):
        planned(MISTRAL, box("RTX 4070", ram_gb=4), quantization="none")


def test_hopper_may_take_fp8_and_says_so() -> None:
    plan = planned(MISTRAL, box("H100"), quantization="8bit")
    assert (plan.id, plan.model.quantization) == ("vllm-fp8-tp1", "FP8")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_every_plan_explains_itself(row: tuple[str, ...]) -> None:
    plan = planned(MISTRAL, box(row[0]))
    assert plan.reasons[0].startswith(f"tier {plan.tier}: ")
    assert plan.ladder
    assert plan.rejected
    assert all(rejection.why for rejection in plan.rejected)
    if plan.tier != "MULTI_GPU":
        assert plan.guide is not None
        assert "not measured here" in plan.guide.source
    assert plan.expected.tokens_per_second is not None
