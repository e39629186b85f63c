"""What a card can do at all, hybrid models, ids, ladders, visible devices, and refusals as text."""

from __future__ import annotations

import re

import pytest

from engine_launchers import vllm_memory
from engine_launchers.base import Listen
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import Adapter
from orchestrator.errors import NoEngineFits
from tests.machines import machines
from tests.plans import (
    GIB,
    MISTRAL,
    box,
    catalog,
    held,
    launchers,
    planned,
    variants,
    with_gpus,
)

RECORDED = machines()
SMALL = "smollm2-135m-instruct"


# --- what a card or a system can do -------------------------------------------------------------


def whys(hardware: HardwareProfile, model: str = MISTRAL) -> tuple[str, str]:
    plan = planned(model, hardware)
    return plan.engine, " | ".join(f"{r.what}: {r.why}" for r in plan.rejected)


def test_a_v100_is_too_old_for_vllm() -> None:
    engine, told = whys(box("V100"))
    assert engine == "llama_server"
    assert "vLLM needs compute capability 7.5, V100 SXM2 16GB has 7.0" in told


def test_a_t4_computes_in_fp16_and_has_no_fp8() -> None:
    plan = planned(MISTRAL, box("T4"))
    assert (plan.engine, plan.tuning.dtype) == ("vllm", "float16")
    assert "FP8 needs compute capability 8.9, T4 has 7.5" in whys(box("T4"))[1]
    four = planned(MISTRAL, RECORDED["cloud-t4-x4"])
    assert four.id == "vllm-fp16-tp4"


def test_bf16_is_replaced_on_old_cards_with_a_reason() -> None:
    old = with_gpus(box("A100 80GB"), compute_capability=(7, 5))  # its tier wishes BF16
    plan = planned(MISTRAL, old)
    assert plan.tuning.dtype == "float16"
    assert any("BF16 needs compute capability 8.0" in reason for reason in plan.reasons)


def test_an_ampere_card_has_no_fp8() -> None:
    assert "FP8 needs compute capability 8.9, RTX 3090 has 8.6" in whys(box("RTX 3090"))[1]
    assert "FP8 needs compute" not in whys(box("RTX 4090"))[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("windows-rtx4070ti", "does not run on Windows"),
        ("mac-m3-max-64", "does not drive Apple M3 Max"),
        ("desktop-mi50-x2", "(gfx906)"),
        ("desktop-arc-a770", "does not drive"),
    ],
)
def test_where_vllm_does_not_run_another_engine_does(name: str, words: str) -> None:
    engine, told = whys(RECORDED[name])
    assert engine == "llama_server"
    assert words in told
    assert "llama_cpp" in told


def test_a_new_amd_card_runs_vllm() -> None:
    plan = planned(MISTRAL, RECORDED["desktop-rx7900xt"])
    assert plan.engine == "vllm"
    assert list(plan.visible) == ["HIP_VISIBLE_DEVICES"]


# --- visible devices ----------------------------------------------------------------------------


def test_an_engine_sees_its_own_cards_only() -> None:
    mixed = box("RTX 3090", "RTX 4090")
    plan = planned(MISTRAL, mixed)
    (used,) = plan.gpus
    assert plan.visible == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(used)}
    named = RECORDED["cloud-t4-x4"]
    wanted = ",".join(gpu.uuid for gpu in named.gpus)
    assert planned(MISTRAL, named).visible == {"CUDA_VISIBLE_DEVICES": wanted}
    assert planned(MISTRAL, box("none")).visible == {}
    assert planned(MISTRAL, RECORDED["mac-m3-max-64"]).visible == {}


def test_what_is_visible_is_what_is_planned_on_every_machine() -> None:
    for name, hardware in RECORDED.items():
        plan = planned(SMALL, hardware)
        values = [value for key, value in plan.visible.items() if "VISIBLE" in key]
        seen = values[0].split(",") if values else []
        nvidia = [
            g for g in hardware.gpus if g.index in plan.gpus and g.vendor in {"nvidia", "amd"}
        ]
        assert len(seen) == len(nvidia), name


# --- hybrid models ------------------------------------------------------------------------------


def test_a_hybrid_models_pool_is_as_published() -> None:
    """Row vllm-49064-7900xt-132k: 161 blocks of 784 tokens on each of two ranks."""
    model = variants("qwen3.5-27b")[0]
    pool = vllm_memory.state_pool(model, vllm_memory.Run(tensor_parallel=2))
    assert pool is not None
    assert (pool.block_tokens, pool.state_groups) == (784, 3)
    kv = 161 * pool.block_bytes
    assert pool.blocks(kv) == 161
    assert pool.longest(kv) == 161 * 784 - 3 * 784 == 123_872


@pytest.mark.parametrize("gpu", ["RTX 4090", "RTX 3090:2", "A100 80GB", "H100", "RX 7900 XT:2"])
@pytest.mark.parametrize("name", ["qwen3.5-9b", "qwen3.5-27b", "qwen3.5-35b-a3b"])
def test_a_hybrid_model_has_a_block_for_every_sequence(gpu: str, name: str) -> None:
    plan = planned(name, box(gpu))
    if plan.engine != "vllm":
        assert any(r.need is not None for r in plan.rejected if r.what.startswith("vllm"))
        return
    ranks = plan.tuning.tensor_parallel or 1
    pool = vllm_memory.state_pool(plan.model, vllm_memory.Run(tensor_parallel=ranks))
    assert pool is not None
    blocks = pool.blocks(plan.estimate[0].kv + pool.block_bytes / 2)
    assert (plan.tuning.max_concurrency or 0) <= blocks
    assert (plan.tuning.max_model_len or 0) <= pool.longest(plan.estimate[0].kv + 1)


def test_more_users_than_blocks_are_refused_with_the_number_that_would_do() -> None:
    hardware = held(box("A100 80GB"), gpu0=72 * GIB)
    pins = {"force_backend": "vllm", "quantization": "none", "context": 512}
    with pytest.raises(NoEngineFits) as refused:
        planned("qwen3.5-27b", hardware, users=1000, **pins)
    found = re.search(r"1000 sequences need a state block each, \d+ fit; ask for (\d+)",
                      refused.value.message)  # fmt: skip
    if found is None:  # a full context for each is more than a block for each
        assert "tokens for each of 1000" in refused.value.message


# --- precision ----------------------------------------------------------------------------------


def test_a_model_made_in_four_bits_stays_in_them() -> None:
    for gpu in ("RTX 4090", "H100", "H100:8"):
        plan = planned("gpt-oss-20b", box(gpu))
        assert plan.model.quantization == "MXFP4"
        assert plan.id.startswith("vllm-mxfp4-tp")
        assert any("the model's own, more bits would add nothing" in r for r in plan.reasons)


# --- ids, ladders, sentences --------------------------------------------------------------------


def test_an_adapter_is_in_the_id_and_in_the_memory() -> None:
    plain = tuple(v for v in variants(MISTRAL) if v.quantization == "BF16")
    adapter = Adapter(name="a", path="/adapters/a", format="safetensors")
    tuned = tuple(v.model_copy(update={"adapters": (adapter,)}) for v in plain)
    with_it, without = planned(tuned, box("RTX 4090")), planned(plain, box("RTX 4090"))
    assert (with_it.id, without.id) == ("vllm-fp16-tp1-lora", "vllm-fp16-tp1")
    assert with_it.estimate[0].weights > without.estimate[0].weights
    assert with_it.estimate[0].total <= without.estimate[0].total + 2**20


@pytest.mark.parametrize("gpu", ["none", "RTX 2060", "RTX 4060", "RTX 4090", "H100:8"])
def test_the_ladder_goes_down_ends_and_names_the_next_plans(gpu: str) -> None:
    plan = planned(MISTRAL, box(gpu))
    steps = [step for step in plan.ladder if not step.startswith("then ")]
    after = [step.removeprefix("then ") for step in plan.ladder if step.startswith("then ")]
    assert 1 <= len(steps) <= 20
    for step in steps:
        if step == "cache f16 -> q8_0":
            continue
        found = re.fullmatch(r"\D+ (-?[\d.]+) -> ([\d.]+)", step)
        assert found, step
        assert float(found[1]) == -1 or float(found[2]) < float(found[1])
    assert after
    assert plan.id not in after
    assert set(after) <= {r.what.split(" ")[0] for r in plan.rejected}


def test_threads_are_the_physical_cores() -> None:
    for cores in (1, 6, 64):
        assert planned(MISTRAL, box("none", cpus=cores)).tuning.threads == cores
    two_sockets = RECORDED["cpu-epyc-2-socket"]
    assert planned(MISTRAL, two_sockets).tuning.threads == two_sockets.cpu_cores


def test_a_refusal_names_every_engine_with_a_number_and_a_way_out() -> None:
    with pytest.raises(NoEngineFits) as refused:
        planned("llama-3.1-405b-instruct", box("RTX 4090"))
    said = refused.value.message
    for engine in ("vllm", "llama_server", "llama_cpp", "pytorch"):
        assert engine in said
    assert len(re.findall(r"\d+\.\d\d GiB", said)) >= 4


def test_what_is_refused_for_its_size_carries_both_numbers() -> None:
    for gpu in ("RTX 2060", "RTX 4080", "RTX 3090:3", "H100"):
        for name in catalog().names()[::9]:
            try:
                plan = planned(name, box(gpu))
            except NoEngineFits:
                continue
            for each in plan.rejected:
                if each.unit in {"bytes", "tokens"}:
                    assert each.need is not None, each
                    assert each.have is not None, each
                    assert re.search(r"\d", each.why)


def test_every_planned_command_can_be_written() -> None:
    for hardware in RECORDED.values():
        plan = planned(SMALL, hardware)
        spec = launchers()[plan.engine].command(plan, Listen(port=8100))
        assert spec.env.items() >= plan.visible.items()
