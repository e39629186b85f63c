"""Nominal sizes, tier boundaries, and the tiers' content against the documents' tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine_launchers.machine import Gpu, HardwareProfile
from orchestrator.errors import ConfigError
from orchestrator.planning.tiers import choose_tier, nominal_gb, parse_tiers
from orchestrator.resources import config_path

GIB, MIB = 2**30, 2**20
TIERS = parse_tiers(yaml.safe_load(config_path("tiers.yaml").read_text()))
BY_NAME = {tier.name: tier for tier in TIERS}
FIXTURE = Path(__file__).parents[1] / "fixtures/truth/gpus.jsonl"
TRUTH: list[dict[str, Any]] = [json.loads(line) for line in FIXTURE.read_text().splitlines()]


def machine(
    *mib: int, unified: bool = False, capability: tuple[int, int] | None = None
) -> HardwareProfile:
    gpus = tuple(
        Gpu(index=i, uuid=str(i), name="card", vendor="nvidia", vram_total=m * MIB, vram_free=0,
            unified=unified, compute_capability=capability)
        for i, m in enumerate(mib)
    )  # fmt: skip
    return HardwareProfile(
        gpus=gpus, ram_total=64 * GIB, ram_available=64 * GIB, cpu_cores=4, platform="p"
    )


def by_size(gb: float) -> str:
    """The documents' headings, for one card."""
    if gb < 8:
        return "LOW_VRAM"
    if gb <= 12:
        return "CONSUMER"
    return "PROSUMER" if gb <= 24 else "DATACENTER"


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: str(row["name"]))
def test_every_published_card_has_its_size_and_tier(row: dict[str, Any]) -> None:
    seen = [row["nvidia_smi_mib"], *row["also_seen_mib"]]
    if row["cuda_visible_mib"]:
        seen.append(row["cuda_visible_mib"])
    for mib in seen:
        assert nominal_gb(mib * MIB) == row["nominal_gb"]
        assert choose_tier(TIERS, machine(mib)).name == by_size(row["nominal_gb"])
        assert choose_tier(TIERS, machine(mib, mib)).name == "MULTI_GPU"


@pytest.mark.parametrize(
    ("gib", "size"),
    [
        (5738 / 1024, 6),  # RTX 2060, CUDA-visible
        (6144 / 1024, 6),
        (7.92, 8),
        (8.0, 8),  # WSL prints the nominal size
        (12.0, 12),
        (24.0, 24),
        (9.78, 10),
        (10.73, 11),
        (14.74, 16),  # T4, CUDA-visible
        (22.03, 24),  # L4, CUDA-visible
        (23040 / 1024, 24),  # P40 with ECC
        (22731 / 1024, 24),  # A10G, older driver
        (22528 / 1024, 22),  # 2080 Ti rebuilt
        (31.4, 32),
        (40536 / 1024, 40),
        (39.38, 40),
        (46068 / 1024, 48),
        (49140 / 1024, 48),
        (49140 / 1024 - 0.5, 48),
        (79.1, 80),
        (139.8, 141),
        (191.98, 192),
        (275040 / 1024, 288),
    ],
)
def test_sizes_seen_elsewhere(gib: float, size: float) -> None:
    assert nominal_gb(int(gib * GIB)) == size


@pytest.mark.parametrize("gib", [0.5, 9.0, 13.0, 17.0, 27.0, 36.0, 115.0, 300.0, 384.0])
def test_what_is_near_no_size_stays(gib: float) -> None:
    assert nominal_gb(int(gib * GIB)) == gib


@given(st.integers(0, 600 * GIB), st.integers(0, 600 * GIB))
def test_more_memory_is_never_a_smaller_card_and_none_shrinks(one: int, other: int) -> None:
    less, more = sorted((one, other))
    assert nominal_gb(less) <= nominal_gb(more)
    assert less / GIB <= nominal_gb(less) <= less / GIB * 1.1


@given(st.integers(0, 600 * GIB))
def test_a_nominal_size_is_its_own(size: int) -> None:
    nominal = nominal_gb(size)
    assert nominal_gb(int(nominal * GIB)) == pytest.approx(nominal)


@pytest.mark.parametrize(
    ("mib", "tier"),
    [
        ([], "CPU_ONLY"),
        ([4096], "LOW_VRAM"),
        ([6144], "LOW_VRAM"),
        ([8151], "CONSUMER"),
        ([8188], "CONSUMER"),
        ([12282], "CONSUMER"),
        ([15360], "PROSUMER"),
        ([16376], "PROSUMER"),
        ([23028], "PROSUMER"),
        ([24564], "PROSUMER"),
        ([32607], "DATACENTER"),
        ([46068], "DATACENTER"),
        ([143771], "DATACENTER"),
        ([24564, 8188], "MULTI_GPU"),
        ([6144] * 8, "MULTI_GPU"),
    ],
)
def test_boundaries(mib: list[int], tier: str) -> None:
    assert choose_tier(TIERS, machine(*mib)).name == tier


def test_shared_memory_counts_as_reported() -> None:
    assert choose_tier(TIERS, machine(7800, unified=True)).name == "LOW_VRAM"
    assert choose_tier(TIERS, machine(7800)).name == "CONSUMER"


def test_unequal_cards_are_as_large_as_the_smallest_where_sizes_count() -> None:
    rows = [
        {"name": name, "gpus": [2, 8], "vram_gb": sizes, "backend": "vllm", "quantization": "FP16",
         "max_batch": 1, "max_context": 1}
        for name, sizes in (("SMALL", [0, 12]), ("LARGE", [12, 100]))
    ]  # fmt: skip
    tiers = parse_tiers({"tiers": rows})
    assert choose_tier(tiers, machine(24564, 8188)).name == "SMALL"
    assert choose_tier(tiers, machine(24564, 24564)).name == "LARGE"
    with pytest.raises(ConfigError, match="no tier covers 1 GPUs of 24 GB"):
        choose_tier(tiers, machine(24564))


@given(st.lists(st.integers(0, 300_000), max_size=8))
def test_every_machine_has_a_tier(mib: list[int]) -> None:
    assert choose_tier(TIERS, machine(*mib))


# name: backend, quantization, batch, context, flash attention, layers, utilization, parallel
DOCUMENTED = {
    "CPU_ONLY": ("llama_cpp", "Q4_K_M", 1, 2048, None, None, None, None),
    "LOW_VRAM": ("llama_cpp", "Q4_K_M", 1, 4096, True, 20, None, None),
    "CONSUMER": ("vllm", "AWQ", 8, 8192, True, None, 0.90, None),
    "PROSUMER": ("vllm", "FP16", 32, 16384, True, None, 0.90, None),
    "DATACENTER": ("vllm", "BF16", 128, 32768, True, None, 0.95, None),
    "MULTI_GPU": ("vllm", "FP16", 128, 32768, None, None, None, "all"),
}
# name: model, tokens per second, milliseconds to the first, tokens per second of a batch
SPEEDS = {
    "CPU_ONLY": ("Mistral-7B Q4", (5, 10), (500, 1000), None),
    "LOW_VRAM": ("Mistral-7B Q4", (15, 25), (200, 400), None),
    "CONSUMER": ("Mistral-7B AWQ", (40, 60), (50, 100), 100),
    "PROSUMER": ("Mistral-7B FP16", (80, 120), (20, 50), 300),
    "DATACENTER": ("Mistral-7B BF16", (150, 200), (10, 30), 1000),
}
MODELS = {
    "CPU_ONLY": ("mistral-7b-instruct-v0.3.Q4_K_M.gguf", "starcoder2-3b.Q4_K_M.gguf"),
    "CONSUMER": ("mistral-7b-instruct-v0.3-awq", "starcoder2-3b-awq"),
    "PROSUMER": ("mistral-7b-instruct-v0.3", "starcoder2-7b"),
    "DATACENTER": ("mistral-7b-instruct-v0.3", "starcoder2-15b"),
}


def test_the_tiers_are_the_documents() -> None:
    assert {
        tier.name: (
            tier.backend, tier.quantization, tier.max_batch, tier.max_context,
            tier.flash_attention, tier.gpu_layers, tier.gpu_memory_utilization,
            tier.tensor_parallel,
        )
        for tier in TIERS
    } == DOCUMENTED  # fmt: skip
    speeds = {tier.name: tier.expected for tier in TIERS if tier.expected}
    assert {
        name: (e.model, e.tokens_per_second, e.ttft_ms, e.batch_tokens_per_second)
        for name, e in speeds.items()
    } == SPEEDS
    assert {tier.name: tier.models for tier in TIERS if tier.models} == MODELS


def test_fp8_is_allowed_on_hopper_alone() -> None:
    tier = BY_NAME["DATACENTER"]
    assert tier.quantizations(machine(81559, capability=(9, 0))) == ("BF16", "FP8")
    assert tier.quantizations(machine(81920, capability=(8, 0))) == ("BF16",)
    assert tier.quantizations(machine(81920)) == ("BF16",)
    assert tier.quantizations(machine()) == ("BF16",)
    assert BY_NAME["PROSUMER"].quantizations(machine(81559, capability=(9, 0))) == ("FP16",)


def test_a_misspelt_tier_is_refused() -> None:
    row = {"name": "A", "gpus": [0, 9], "backend": "vllm", "quantization": "FP16", "max_batch": 1}
    with pytest.raises(ConfigError, match="max_kontext"):
        parse_tiers({"tiers": [{**row, "max_context": 1, "max_kontext": 1}]})
