"""What the planner decides: pins, goals, how cards work together, what a card can do at all."""

from __future__ import annotations

import re

import pytest

from engine_launchers.base import EnginePlan
from engine_launchers.machine import HardwareProfile
from orchestrator.errors import NoEngineFits
from tests.machines import machines
from tests.plans import GIB, MISTRAL, artefact, box, held, planned, variants

RECORDED = machines()
BIG = "llama-3.3-70b-instruct"


def why(plan: EnginePlan, what: str) -> str:
    return next(r.why for r in plan.rejected if r.what == what)


def refusal(model: str, hardware: HardwareProfile, **pins: object) -> str:
    with pytest.raises(NoEngineFits) as refused:
        planned(model, hardware, **pins)
    return refused.value.message


# --- pins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pins", "field", "value"),
    [
        ({"context": 10_000}, "max_model_len", 10_000),
        ({"users": 8}, "max_concurrency", 8),
        ({"threads": 3}, "threads", 3),
        ({"gpu_memory_utilization": 0.5}, "gpu_memory_fraction", 0.5),
        ({"gpu_layers": 10}, "gpu_layers", 10),
        ({"gpu_layers": 99}, "gpu_layers", 99),
        ({"gpu_layers": 0}, "gpu_layers", 0),
        ({"tensor_parallel_size": 1}, "tensor_parallel", 1),
    ],
)
def test_a_pin_that_fits_is_kept(pins: dict[str, object], field: str, value: object) -> None:
    plan = planned(MISTRAL, box("RTX 4090"), **pins)
    assert field in plan.pinned
    assert getattr(plan.tuning, field) == value


def test_a_setting_that_one_engine_has_chooses_that_engine() -> None:
    assert planned(MISTRAL, box("RTX 4090"), gpu_layers=10).engine == "llama_server"
    assert planned(MISTRAL, box("RTX 4060", ram_gb=8), gpu_memory_utilization=0.8).engine == "vllm"
    assert planned(MISTRAL, box("none"), users=2, context=512).engine != "llama_cpp"


@pytest.mark.parametrize(
    ("gpu", "pins", "number", "remedy"),
    [
        ("RTX 4060", {"context": 32768, "force_backend": "vllm"}, "2.21 GiB", "18128 tokens"),
        ("RTX 4060", {"context": 99_999}, "context 99999", "32768"),
        ("RTX 4060", {"users": 64, "force_backend": "vllm"}, "64", "283 tokens for each of 64"),
        ("RTX 4090", {"gpu_memory_utilization": 1.0}, "22.65 GiB", "0.95 would do"),
        ("RTX 4090:4", {"tensor_parallel_size": 3}, "32 heads", "tensor parallel 3"),
        ("RTX 4090", {"tensor_parallel_size": 2}, "2 of 1 GPUs", "that many equal GPUs"),
        ("none", {"gpu_layers": 10}, "gpu_layers 10", "only llama_server and llama_cpp"),
        ("none", {"gpu_memory_utilization": 0.5}, "0.5", "only vllm on a GPU"),
        ("RTX 2060", {"gpu_layers": 33, "context": 32768}, "32768", "context 8448 would fit"),
        ("RTX 4090", {"force_backend": "llama_cpp", "users": 2}, "2", "one request at a time"),
    ],
)
def test_a_pin_that_does_not_fit_is_refused_with_what_would(
    gpu: str, pins: dict[str, object], number: str, remedy: str
) -> None:
    said = refusal(MISTRAL, box(gpu), **pins)
    assert number in said
    assert remedy in said


def test_a_pinned_context_in_too_little_ram_says_which_would_fit() -> None:
    said = refusal(MISTRAL, box("none", ram_gb=6), context=32768)
    found = re.search(r"llama_cpp Q4_K_M .*?context (\d+) would fit", said)
    assert found, said
    plan = planned(MISTRAL, box("none", ram_gb=6), context=int(found[1]))
    assert plan.tuning.max_model_len == int(found[1])


def test_a_share_that_would_do_does() -> None:
    said = refusal(MISTRAL, box("RTX 4090"), gpu_memory_utilization=1.0)
    found = re.search(r"; (0\.\d+) would do", said)
    assert found
    assert planned(MISTRAL, box("RTX 4090"), gpu_memory_utilization=float(found[1])).gpus == (0,)


# --- goals --------------------------------------------------------------------------------------


def test_throughput_on_two_cards_is_two_replicas_of_what_one_card_holds() -> None:
    plan = planned("llama-3.2-1b-instruct", box("RTX 4090:2"), goal="throughput", users=16)
    assert plan.tuning.replicas == 2
    assert plan.tuning.tensor_parallel == 1
    assert any("2 replicas" in reason for reason in plan.reasons)
    single = planned("llama-3.2-1b-instruct", box("RTX 4090"), goal="throughput", users=16)
    both, one = plan.expected.batch_tokens_per_second, single.expected.batch_tokens_per_second
    assert both is not None
    assert one is not None
    assert both == pytest.approx(2 * one, rel=0.1)


def test_throughput_of_what_needs_both_cards_is_no_replica() -> None:
    plan = planned("qwen2.5-14b-instruct", box("RTX 4090:2"), goal="throughput",
                   quantization="none", force_backend="vllm")  # fmt: skip
    assert plan.tuning.tensor_parallel == 2
    assert plan.tuning.replicas in (None, 1)


def rate(plan: EnginePlan) -> float:
    pair = plan.expected.tokens_per_second
    assert pair is not None
    return sum(pair) / 2


def taken(plan: EnginePlan) -> int:
    return sum(part.total - part.kv for part in plan.estimate)


def test_each_goal_is_best_at_its_own_figure() -> None:
    hardware = box("RTX 4090:2")
    plans = {
        goal: planned(MISTRAL, hardware, goal=goal)
        for goal in ("throughput", "latency", "quality", "memory")
    }
    assert rate(plans["latency"]) == max(rate(plan) for plan in plans.values())
    assert taken(plans["memory"]) == min(taken(plan) for plan in plans.values())
    assert plans["quality"].model.quantization == "BF16"
    best = plans["throughput"].expected.batch_tokens_per_second
    assert best == max(p.expected.batch_tokens_per_second or 0 for p in plans.values())
    assert all(f"goal {goal}" in " ".join(plan.reasons) for goal, plan in plans.items())


# --- how cards work together --------------------------------------------------------------------


def test_36_heads_on_8_cards_are_four_ranks() -> None:
    plan = planned("starcoder2-7b", box("A100 80GB:8"))
    assert plan.id == "vllm-fp16-tp4"
    assert why(plan, "vllm BF16 tp8 on 8 GPUs") == "36 heads do not divide by tensor parallel 8"


def test_three_equal_cards_are_stages_only_for_what_two_do_not_hold() -> None:
    plan = planned(MISTRAL, box("RTX 3090:3"))
    assert plan.id == "vllm-fp16-tp2"
    assert "32 heads do not divide by tensor parallel 3" in why(plan, "vllm BF16 tp3 on 3 GPUs")
    large = planned("mistral-small-3.2-24b-instruct", box("RTX 3090:3"), quantization="none")
    assert large.id.endswith("-tp1-pp3")
    assert any("pipeline parallel 3" in reason for reason in large.reasons)


def test_vision_heads_have_to_divide_too() -> None:
    whole = variants("gemma-3-27b-it")  # 32 heads, 16 KV heads, 16 vision heads
    assert planned(whole, box("H100:8")).tuning.tensor_parallel == 8
    odd = tuple(each.model_copy(update={"vision_heads": 12}) for each in whole)
    plan = planned(odd, box("H100:8"))
    assert plan.tuning.tensor_parallel == 4
    assert "12 vision heads do not divide by tensor parallel 8" in why(
        plan, "vllm BF16 tp8 on 8 GPUs"
    )


def test_kv_heads_may_be_replicated_but_not_torn() -> None:
    odd = tuple(each.model_copy(update={"kv_heads": 6}) for each in variants(MISTRAL))
    plan = planned(odd, box("H100:4"))
    assert "6 KV heads and tensor parallel 4 do not divide" in why(plan, "vllm BF16 tp4 on 4 GPUs")
    few = tuple(each.model_copy(update={"kv_heads": 2}) for each in variants(MISTRAL))
    assert planned(few, box("H100:8")).tuning.tensor_parallel == 8


def test_unlike_cards_are_no_ranks_of_one_engine() -> None:
    mixed = box("RTX 4090", "RTX 3090")
    plan = planned(MISTRAL, mixed)
    assert plan.tuning.tensor_parallel == 1
    assert len(plan.gpus) == 1
    assert not [r for r in plan.rejected if "tp2" in r.what or "pp2" in r.what]
    with pytest.raises(NoEngineFits):
        planned(MISTRAL, mixed, tensor_parallel_size=2)
    spread = planned(BIG, mixed)  # needs both: layers in turn, on cards of any kind
    assert (spread.engine, spread.gpus) == ("llama_server", (0, 1))


def test_of_mixed_cards_the_equal_ones_work_together() -> None:
    plan = planned("qwen2.5-14b-instruct", box("RTX 4090", "RTX 3090:2"), quantization="none",
                   tensor_parallel_size=2)  # fmt: skip
    assert plan.gpus == (1, 2)


def test_mig_slices_are_never_combined() -> None:
    hardware = RECORDED["server-a100-mig"]
    slices = {gpu.index for gpu in hardware.gpus if gpu.mig}
    assert len(slices) > 1
    alone = hardware.model_copy(
        update={"gpus": tuple(gpu for gpu in hardware.gpus if gpu.mig), "links": ()}
    )
    for name in (MISTRAL, "llama-3.2-1b-instruct", BIG):
        for goal in (None, "throughput"):
            try:
                plan = planned(name, alone, goal=goal)
            except NoEngineFits:
                continue
            assert len(plan.gpus) <= 1
            assert (plan.tuning.replicas or 1) == 1


def test_the_split_over_unequal_free_memory_follows_it() -> None:
    hardware = held(box("RTX 4090:2"), gpu0=10 * GIB)
    plan = planned(BIG, hardware, force_backend="llama_cpp")
    first, second = plan.tuning.tensor_split
    assert first < second
    assert first + second == pytest.approx(1, abs=0.01)


# --- shared cards -------------------------------------------------------------------------------


def test_two_engines_share_a_card() -> None:
    hardware = box("RTX 4090")
    one = planned(MISTRAL, hardware, gpu_memory_utilization=0.45, force_backend="vllm")
    took = next(part.total for part in one.estimate if part.device == "gpu:0")
    left = held(hardware, gpu0=hardware.gpus[0].vram_free - took)
    two = planned(MISTRAL, left, force_backend="vllm")
    share = two.tuning.gpu_memory_fraction
    assert share is not None
    assert share < 0.55
    assert share + 0.45 < 1
    assert any(f"gpu_memory_utilization {share:g}" in reason for reason in two.reasons)


def test_free_memory_counts_not_total() -> None:
    occupied = RECORDED["desktop-rtx4090-occupied"]
    plan = planned(MISTRAL, occupied)
    assert plan.engine == "llama_server"
    assert plan.gpus == ()
    assert plan.tuning.gpu_layers == 0
    assert any("GPU before any layer" in r.why for r in plan.rejected)
    tight = planned(MISTRAL, held(box("RTX 4090"), gpu0=3 * GIB))
    assert tight.engine == "llama_server"
    assert tight.tuning.gpu_layers is not None
    assert 0 < tight.tuning.gpu_layers < 33


def test_a_full_card_is_left_out_and_the_others_used() -> None:
    hardware = held(box("RTX 3090:2"), gpu0=0)
    plan = planned(BIG, hardware, force_backend="llama_cpp")
    assert plan.gpus == (1,)
    assert plan.visible["CUDA_VISIBLE_DEVICES"] == "1"


def test_offload_grows_with_free_memory() -> None:
    q4 = (artefact(MISTRAL, "Q4_K_M"),)
    layers = []
    for free in range(1, 8):
        plan = planned(q4, held(box("RTX 4090"), gpu0=free * GIB))
        count = plan.tuning.gpu_layers or 0
        layers.append(33 if count < 0 else count)
    assert layers == sorted(layers)
    assert layers[0] < layers[2] < layers[-1] == 33
    card = next(p for p in plan.estimate if p.device == "gpu:0")
    assert card.weights > 4 * 10**9
