"""What no plan may do: drop a wish, count one memory twice, promise more than bandwidth gives."""

from __future__ import annotations

import pytest

from engine_launchers import vllm_fit, vllm_memory
from engine_launchers.base import CrashCause, EnginePlan
from engine_launchers.loading import loaded
from engine_launchers.precision import satisfies
from engine_launchers.vllm import VllmLauncher
from orchestrator.errors import ConfigError, NoEngineFits
from orchestrator.planning.hypothetical import machine
from orchestrator.tables import load_gpus
from tests.machines import machines
from tests.plans import box, planned, variants

TABLE = load_gpus()


def test_users_that_a_serial_engine_cannot_take_are_refused_or_given_to_another() -> None:
    for gpu in ("none", "M2 Ultra", "P40"):
        plan = planned("qwen3-8b", box(gpu), users=4)
        assert plan.engine != "llama_cpp"
        assert plan.tuning.max_concurrency == 4
    with pytest.raises(NoEngineFits, match=r"\d"):
        planned("qwen3-8b", box("H100"), users=50_000)


def test_tensor_parallel_is_what_was_asked_for_and_no_more_cards() -> None:
    plan = planned("qwen3-32b", box("A100 80GB:4"), tensor_parallel_size=2)
    assert (plan.tuning.tensor_parallel, len(plan.gpus)) == (2, 2)
    with pytest.raises(NoEngineFits, match="tensor parallel 8 of 4 GPUs"):
        planned("qwen3-32b", box("A100 80GB:4"), tensor_parallel_size=8)


@pytest.mark.parametrize("model", ["gemma-2-9b-it", "gemma-3-4b-it"])
def test_what_overflows_in_float16_is_computed_in_bfloat16_or_elsewhere(model: str) -> None:
    assert planned(model, box("RTX 4090")).tuning.dtype == "bfloat16"
    old = planned(model, box("T4"))
    assert old.engine != "vllm"
    assert any("needs BF16" in refused.why for refused in old.rejected)


@pytest.mark.parametrize("card", ["RX 6800 XT", "MI50 32GB", "MI100", "RX 580"])
def test_an_imagined_card_has_the_chip_of_a_real_one(card: str) -> None:
    assert planned("qwen3-0.6b", box(card)).engine != "vllm"


def test_fp8_needs_a_chip_that_has_it() -> None:
    for card in ("RX 7900 XTX", "MI250"):
        plan = planned("qwen3-8b", box(card), quantization="8bit")
        assert (plan.engine, plan.tuning.quantization) != ("vllm", "FP8")
    assert planned("qwen3-8b", box("MI300X"), quantization="8bit").tuning.quantization == "FP8"


def test_makers_are_not_mixed_in_one_process() -> None:
    plan = planned("qwen3-32b", box("RTX 4090", "RX 7900 XTX"), force_backend="llama_cpp")
    assert len(plan.gpus) == 1


@pytest.mark.parametrize("gpu", ["M3 Max", "GB10", "Ryzen AI Max+ 395"])
@pytest.mark.parametrize("model", ["qwen2.5-72b-instruct", "gpt-oss-120b", "qwen3-8b"])
def test_one_memory_is_counted_once(gpu: str, model: str) -> None:
    hardware = box(gpu)
    try:
        plan = planned(model, hardware)
    except NoEngineFits:
        return
    assert sum(part.total for part in plan.estimate) <= hardware.ram_available


def test_a_recorded_unified_machine_is_not_overfilled() -> None:
    hardware = machines()["desktop-dgx-spark"]
    plan = planned("gpt-oss-120b", hardware)
    assert sum(part.total for part in plan.estimate) <= hardware.ram_available


def test_a_batch_reads_nearly_all_experts() -> None:
    """A card cannot give more steps a second than it can read the touched experts."""
    plan = planned("gpt-oss-120b", box("H100"))
    rate, seqs = plan.expected.batch_tokens_per_second, plan.tuning.max_concurrency or 1
    spec = TABLE.find("H100")
    assert rate is not None
    assert spec is not None
    assert rate / seqs * plan.estimate[0].weights * 0.6 <= spec.bandwidth


def test_stages_take_turns_on_one_prompt() -> None:
    one = planned("qwen3-8b", box("RTX 4090"), quantization="none").expected.ttft_seconds
    three = planned("qwen3-32b", box("RTX 4090:3"), quantization="none").expected.ttft_seconds
    assert one is not None
    assert three is not None
    assert three[0] > 3 * one[0]


def test_layers_in_ram_slow_the_prompt_too() -> None:
    whole = planned("llama-3.3-70b-instruct", box("RTX 4090:2"), force_backend="llama_cpp")
    partly = planned(
        "llama-3.3-70b-instruct", box("RTX 4090", ram_gb=128), force_backend="llama_cpp"
    )
    assert whole.expected.ttft_seconds is not None
    assert partly.expected.ttft_seconds is not None
    assert partly.expected.ttft_seconds[0] > 1.3 * whole.expected.ttft_seconds[0]


def test_32_bit_weights_are_halved_where_they_are_computed_in_16() -> None:
    half = next(v for v in variants("mistral-7b-instruct-v0.3") if v.quantization == "BF16")
    full = half.model_copy(update={"quantization": "FP32", "weight_bytes": 2 * half.weight_bytes,
                                   "weights": None, "dtype": "float32"})  # fmt: skip
    assert loaded(full, "float16").weight_bytes == half.weight_bytes
    assert loaded(full, "float32") is full
    assert loaded(half, "float16") is half
    plan = planned((full,), box("RTX 4090"), force_backend="vllm")
    assert plan.estimate[0].weights == pytest.approx(half.weight_bytes, rel=0.01)


def test_a_latent_cache_is_divided_by_stages_not_by_ranks() -> None:
    """64 users of 32768 tokens: eight ranks hold eight copies of the cache, four stages do not."""
    plan = planned("deepseek-v3", box("H200:8"), context=32768, users=64)
    assert (plan.tuning.pipeline_parallel or 1) > 1


def test_every_rung_of_vllm_holds_a_request() -> None:
    plan: EnginePlan | None = planned("mistral-7b-instruct-v0.3", box("RTX 4060"))
    rungs = 0
    while plan is not None:
        assert vllm_fit.holds(plan), plan.reasons[-1]
        plan, rungs = VllmLauncher().relax(plan, CrashCause.GPU_OOM), rungs + 1
    assert 5 < rungs < 40


def test_plans_are_made_with_the_bound_of_the_sampler() -> None:
    plan = planned("qwen3-8b", box("H100"), users=128, context=2048)
    vocab = plan.model.vocab
    assert plan.estimate[0].activations >= vllm_memory.SAMPLER_BOUND * 128 * vocab


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("Q4_K_L", "4bit", True),
        ("AWQ", "4bit", True),
        ("FP8", "8bit", True),
        ("BF16", "none", True),
        ("EXL2", "none", False),
        ("EXL2", "4bit", False),
        ("Q5_K_M", "4bit", False),
    ],
)
def test_what_satisfies_a_word(name: str, word: str, expected: bool) -> None:
    assert satisfies(name, word) is expected


@pytest.mark.parametrize(
    "flags", [{"vram_gb": 1e300}, {"ram_gb": 1e308}, {"cpus": 100_000_000_000}]
)
def test_sizes_beyond_reason_are_refused(flags: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="at most"):
        machine(TABLE, **flags)  # type: ignore[arg-type]
