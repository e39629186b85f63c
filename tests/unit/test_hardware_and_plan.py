"""The probe of this machine, tiers on the documents' table, plans with their reasons."""

from __future__ import annotations

import pytest
import yaml

from engine_launchers import load_launcher
from engine_launchers.base import EngineName, Launcher
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.errors import ConfigError, NoEngineFits
from orchestrator.hardware import probe
from orchestrator.models.resolve import resolve
from orchestrator.planning.planner import Wish, make_plan
from orchestrator.planning.tiers import choose_tier, nominal_gb, parse_tiers
from orchestrator.resources import config_path, demo_dir
from orchestrator.settings import load_settings
from orchestrator.startup import decide, refuse_unsupported

GIB, MIB = 2**30, 2**20
TIERS = parse_tiers(yaml.safe_load(config_path("tiers.yaml").read_text()))
LAUNCHERS: dict[EngineName, Launcher] = {"llama_cpp": load_launcher("llama_cpp")}


def test_this_machine_is_probed() -> None:
    profile = probe()
    assert profile.cpu_cores >= 1
    assert 0 < profile.ram_available <= profile.ram_total
    assert profile == HardwareProfile.model_validate_json(profile.model_dump_json())


def machine(*mib: int, ram: int = 64 * GIB) -> HardwareProfile:
    gpus = tuple(
        Gpu(index=i, uuid=str(i), name="card", vendor="nvidia", vram_total=m * MIB, vram_free=0)
        for i, m in enumerate(mib)
    )
    return HardwareProfile(
        gpus=gpus, ram_total=ram, ram_available=ram, cpu_cores=4, platform="linux-x86_64"
    )


@pytest.mark.parametrize(
    ("mib", "tier"),
    [
        ([], "CPU_ONLY"),
        ([6144], "LOW_VRAM"),
        ([8188], "CONSUMER"),
        ([12282], "CONSUMER"),
        ([16376], "PROSUMER"),
        ([24564], "PROSUMER"),
        ([23028], "PROSUMER"),
        ([40960], "DATACENTER"),
        ([81559], "DATACENTER"),
        ([24564, 24564], "MULTI_GPU"),
    ],
)
def test_the_documents_tiers(mib: list[int], tier: str) -> None:
    assert choose_tier(TIERS, machine(*mib)).name == tier


def test_nominal_sizes() -> None:
    sizes = {8188: 8, 12282: 12, 24564: 24, 23028: 24, 46068: 48, 81559: 80}
    assert {m: round(nominal_gb(m * MIB)) for m in (8188, 12282, 24564)} == {
        m: sizes[m] for m in (8188, 12282, 24564)
    }


def seven_b(weight_bytes: int = 4_369_000_000) -> ModelSpec:
    return ModelSpec(
        id="m", source="/m.gguf", format="gguf", architecture="llama", params=7 * 10**9,
        layers=32, heads=32, kv_heads=8, head_dim=128, context_max=32768, vocab=32000,
        quantization="Q4_K_M", weight_bytes=weight_bytes,
    )  # fmt: skip


def test_a_cpu_plan_follows_the_tier_and_explains_itself() -> None:
    plan = make_plan([seven_b()], machine(), TIERS, LAUNCHERS, Wish())
    assert (plan.id, plan.tier, plan.engine) == ("llama-cpp-q4-k-m-tp1", "CPU_ONLY", "llama_cpp")
    assert (plan.tuning.max_model_len, plan.tuning.threads) == (2048, 4)
    assert plan.guide is not None
    assert plan.guide.tokens_per_second == (5, 10)
    assert plan.expected.tokens_per_second is not None
    assert any("tier CPU_ONLY" in reason for reason in plan.reasons)
    assert plan.estimate[0].kv == 2 * 32 * 8 * 128 * 2048 * 2


def test_an_engine_that_this_version_lacks_is_rejected_by_name_and_the_next_taken() -> None:
    plan = make_plan([seven_b()], machine(24564), TIERS, LAUNCHERS, Wish())
    assert (plan.tier, plan.engine) == ("PROSUMER", "llama_cpp")
    assert [r.what for r in plan.rejected if "cannot start" in r.why] == [
        "vllm", "llama_server", "pytorch",
    ]  # fmt: skip


def test_a_context_that_does_not_fit_is_halved_with_a_reason_unless_it_is_pinned() -> None:
    small = machine(ram=5 * GIB)
    plan = make_plan([seven_b()], small, TIERS, LAUNCHERS, Wish())
    assert plan.tuning.max_model_len == 2048
    tight = machine(ram=int(4.65 * GIB))
    plan = make_plan([seven_b()], tight, TIERS, LAUNCHERS, Wish())
    assert plan.tuning.max_model_len in range(512, 2048, 256)
    assert any("2048 tokens wished" in reason for reason in plan.reasons)
    with pytest.raises(NoEngineFits, match=r"2048 tokens.*context \d+ would fit"):
        make_plan([seven_b()], tight, TIERS, LAUNCHERS, Wish(max_model_len=2048))
    with pytest.raises(NoEngineFits, match=r"needs .* of RAM"):
        make_plan([seven_b(10**12)], machine(), TIERS, LAUNCHERS, Wish())


def test_pins_are_kept() -> None:
    plan = make_plan(
        resolve("demo", demo_dir(), None).variants[:1], machine(), TIERS, LAUNCHERS,
        Wish(max_model_len=1000, threads=3),
    )  # fmt: skip
    assert plan.pinned == {"max_model_len", "threads"}
    assert (plan.tuning.max_model_len, plan.tuning.threads) == (1000, 3)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"FORCE_BACKEND": "vllm"}, "FORCE_BACKEND=vllm"),
        ({"FORCE_BACKEND": "pytorch"}, "FORCE_BACKEND=pytorch"),
        ({"ADAPTER_PATH": "x"}, "ADAPTER_PATH=x"),
        ({"TENSOR_PARALLEL_SIZE": "2"}, "TENSOR_PARALLEL_SIZE=2"),
        ({"ENABLE_COMPILE": "1"}, "ENABLE_COMPILE=1"),
    ],
)
def test_what_is_not_acted_on_is_refused(env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        refuse_unsupported(load_settings(env=env), LAUNCHERS)


def test_what_is_acted_on_is_accepted() -> None:
    env = {"FORCE_BACKEND": "llama_cpp", "TENSOR_PARALLEL_SIZE": "1", "ENABLE_COMPILE": "0"}
    plan = decide(load_settings(env={**env, "QUANTIZATION": "none"})).plan
    assert plan.model.quantization == "F16"
    assert "engine llama_cpp was asked for" in plan.reasons
