"""Imagined machines: what the flags say, what they leave open, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_launchers.machine import Gpu, GpuLink, HardwareProfile
from orchestrator.errors import ConfigError
from orchestrator.planning.gpus import GpuSpec, parse_gpus
from orchestrator.planning.hypothetical import machine
from orchestrator.planning.tiers import choose_tier, nominal_gb, parse_tiers
from orchestrator.resources import config_path

GIB, MIB = 2**30, 2**20
TABLE = parse_gpus(yaml.safe_load(config_path("gpus.yaml").read_text()))
TIERS = parse_tiers(yaml.safe_load(config_path("tiers.yaml").read_text()))
HERE = HardwareProfile(
    gpus=tuple(
        Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA L4", vendor="nvidia", vram_total=23034 * MIB,
            vram_free=20000 * MIB, compute_capability=(8, 9))
        for i in range(2)
    ),
    links=(GpuLink(a=0, b=1, kind="cpu"),),
    ram_total=100 * GIB, ram_available=70 * GIB, cpu_cores=24, cpu_name="some processor",
    numa_nodes=2, isa=("AVX", "AVX2", "AVX-512"), memory_bandwidth=10**11,
    platform="linux-x86_64", notes=("memory limited",),
)  # fmt: skip


def test_the_flags_of_the_documents() -> None:
    found = machine(TABLE, gpus=["RTX 4090:2", "T4"], ram_gb=64, cpus=8)
    assert [gpu.name for gpu in found.gpus] == ["RTX 4090", "RTX 4090", "T4"]
    assert [gpu.index for gpu in found.gpus] == [0, 1, 2]
    assert [gpu.uuid for gpu in found.gpus] == [f"hypothetical-{i}" for i in range(3)]
    assert [gpu.vram_total // MIB for gpu in found.gpus] == [24564, 24564, 15360]
    assert all(0.97 < gpu.vram_free / gpu.vram_total < 1 for gpu in found.gpus)
    assert [gpu.compute_capability for gpu in found.gpus] == [(8, 9), (8, 9), (7, 5)]
    assert found.gpus[2].memory_bandwidth == 320 * 10**9
    assert {(link.a, link.b, link.kind) for link in found.links} == {
        (0, 1, "pcie"), (0, 2, "pcie"), (1, 2, "pcie"),
    }  # fmt: skip
    assert (found.ram_total, found.cpu_cores) == (64 * GIB, 8)
    assert 0 < found.ram_available < found.ram_total
    assert "hypothetical machine: --gpu 'RTX 4090:2'" in found.notes[0]
    assert choose_tier(TIERS, found).name == "MULTI_GPU"


@pytest.mark.parametrize("spec", TABLE.gpus, ids=lambda spec: spec.name)
def test_every_row_makes_a_machine_that_its_row_is_found_for(spec: GpuSpec) -> None:
    found = machine(TABLE, gpus=[spec.name])
    gpu = found.gpus[0]
    assert TABLE.of(gpu) == spec
    assert gpu.unified == spec.unified
    assert gpu.vram_free < gpu.vram_total
    if spec.unified:
        assert found.ram_total == spec.memory_gb * GIB
        assert gpu.vram_free <= found.ram_available
    else:
        assert nominal_gb(gpu.vram_total) == spec.memory_gb
        assert found.ram_total >= max(32 * GIB, 2 * gpu.vram_total)


@pytest.mark.parametrize(
    ("vram_gb", "tier"),
    [(4, "LOW_VRAM"), (6, "LOW_VRAM"), (8, "CONSUMER"), (12, "CONSUMER"), (16, "PROSUMER"),
     (24, "PROSUMER"), (32, "DATACENTER"), (48, "DATACENTER"), (80, "DATACENTER")],
)  # fmt: skip
def test_memory_alone_is_a_nameless_card(vram_gb: float, tier: str) -> None:
    found = machine(TABLE, vram_gb=vram_gb)
    (gpu,) = found.gpus
    assert (gpu.name, gpu.vendor) == (f"{vram_gb} GB GPU", "nvidia")
    assert (gpu.compute_capability, gpu.memory_bandwidth) == (None, None)
    assert TABLE.of(gpu) is None
    assert nominal_gb(gpu.vram_total) == vram_gb
    assert choose_tier(TIERS, found).name == tier


def test_memory_with_names_is_each_cards_and_chooses_between_sizes() -> None:
    found = machine(TABLE, gpus=["RTX 4090:2"], vram_gb=48)
    assert {nominal_gb(gpu.vram_total) for gpu in found.gpus} == {48}
    assert found.gpus[0].compute_capability == (8, 9)
    (gpu,) = machine(TABLE, gpus=["A100"], vram_gb=40).gpus
    assert (gpu.name, gpu.vram_total) == ("A100 SXM4 40GB", 40960 * MIB)


def test_links_between_equals_are_the_tables() -> None:
    found = machine(TABLE, gpus=["H100:2", "MI300X:2"])
    kinds = {(link.a, link.b): link.kind for link in found.links}
    assert (kinds[0, 1], kinds[2, 3], kinds[1, 2]) == ("nvlink", "xgmi", "pcie")
    assert len(kinds) == 6
    assert [link.kind for link in machine(TABLE, gpus=["a100 pcie:2"]).links] == ["pcie"]


def test_no_gpu() -> None:
    for text in ("0", "none", " None "):
        found = machine(TABLE, gpus=[text], base=HERE)
        assert (found.gpus, found.links) == ((), ())
        assert found.ram_total == HERE.ram_total
        assert choose_tier(TIERS, found).name == "CPU_ONLY"


def test_what_is_not_said_is_taken_from_this_machine() -> None:
    same = machine(TABLE, base=HERE)
    assert same.model_copy(update={"notes": HERE.notes}) == HERE
    other = machine(TABLE, gpus=["T4"], base=HERE)
    assert [gpu.name for gpu in other.gpus] == ["T4"]
    assert other.links == ()
    assert (other.ram_total, other.ram_available) == (HERE.ram_total, HERE.ram_available)
    assert (other.cpu_cores, other.cpu_name, other.isa) == (24, "some processor", HERE.isa)
    assert other.memory_bandwidth == HERE.memory_bandwidth
    fewer = machine(TABLE, ram_gb=16, cpus=4, base=HERE)
    assert fewer.gpus == HERE.gpus
    assert fewer.links == HERE.links
    assert (fewer.ram_total, fewer.cpu_cores, fewer.memory_bandwidth) == (16 * GIB, 4, None)


def test_nothing_said_and_nothing_known_is_a_usual_machine() -> None:
    found = machine(TABLE)
    assert (found.gpus, found.ram_total, found.cpu_cores) == ((), 32 * GIB, 8)
    assert found.platform == "linux-x86_64"
    assert "AVX2" in found.isa
    assert machine(TABLE, gpus=["H100:8"]).ram_total == 2 * 8 * 81559 * MIB


def test_chips_that_share_the_ram() -> None:
    mac = machine(TABLE, gpus=["M3 Max"], ram_gb=64, base=HERE)
    assert (mac.platform, mac.isa, mac.cpu_name) == ("darwin-arm64", ("NEON",), None)
    assert mac.ram_total == 64 * GIB
    assert mac.gpus[0].vram_total == 48 * GIB
    assert machine(TABLE, gpus=["M3 Max"], vram_gb=64).gpus == mac.gpus
    assert machine(TABLE, gpus=["M2"], ram_gb=24).gpus[0].vram_total == 16 * GIB
    lent = machine(TABLE, gpus=["M3 Max"], vram_gb=56, ram_gb=64)
    assert (lent.gpus[0].vram_total, lent.ram_total) == (56 * GIB, 64 * GIB)
    assert machine(TABLE, gpus=["GB10"]).platform == "linux-aarch64"
    assert machine(TABLE, gpus=["GH200"], base=HERE).isa == ("NEON",)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"gpus": ["RTX 4O90"]}, r"'RTX 4O90' is not known; did you mean RTX 4090"),
        ({"gpus": ["a toaster"]}, r"'a toaster' is not known; A card of any size"),
        ({"gpus": ["RTX 4090:0"]}, "whole number from 1 to 64"),
        ({"gpus": ["RTX 4090:-1"]}, "whole number from 1 to 64"),
        ({"gpus": ["RTX 4090:65"]}, "whole number from 1 to 64"),
        ({"gpus": ["RTX 4090:" + "9" * 5000]}, "whole number from 1 to 64"),
        ({"gpus": ["RTX 4090:two"]}, "whole number from 1 to 64"),
        ({"gpus": ["RTX 4090:"]}, "whole number from 1 to 64"),
        ({"gpus": [":2"]}, "names no GPU"),
        ({"gpus": [""]}, "names no GPU"),
        ({"gpus": ["T4:40", "L4:40"]}, "80 GPUs are too many"),
        ({"gpus": ["none", "T4"]}, "no GPU at all"),
        ({"gpus": ["0"], "vram_gb": 8}, "contradict each other"),
        ({"gpus": ["M3 Max:2"]}, "there is one to a machine"),
        ({"gpus": ["M3 Max", "RTX 4090"]}, "there is one to a machine"),
        ({"gpus": ["M3 Max"], "vram_gb": 96, "ram_gb": 64}, "cannot be above --ram-gb 64"),
        ({"vram_gb": 0}, "--vram-gb must be above 0"),
        ({"vram_gb": float("nan")}, "--vram-gb must be above 0"),
        ({"ram_gb": -1}, "--ram-gb must be above 0"),
        ({"ram_gb": float("inf")}, "--ram-gb must be above 0"),
        ({"cpus": 0}, "--cpus must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        machine(TABLE, **flags)
    assert "\n" not in str(caught.value)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["RTX 4090", "T4", "H100"]), st.integers(1, 6)), max_size=4),
    st.none() | st.floats(0.5, 512),
    st.none() | st.floats(1, 4096),
    st.none() | st.integers(1, 512),
    st.sampled_from([None, HERE]),
)
def test_whatever_is_asked_for_is_a_whole_machine(
    asked: list[tuple[str, int]],
    vram_gb: float | None,
    ram_gb: float | None,
    cpus: int | None,
    base: HardwareProfile | None,
) -> None:
    found = machine(
        TABLE, gpus=[f"{name}:{count}" for name, count in asked], vram_gb=vram_gb, ram_gb=ram_gb,
        cpus=cpus, base=base,
    )  # fmt: skip
    assert HardwareProfile.model_validate_json(found.model_dump_json()) == found
    if asked:
        count = sum(number for _, number in asked)
        assert len(found.gpus) == count
        assert len(found.links) == count * (count - 1) // 2
    assert 0 <= found.ram_available <= found.ram_total
    assert all(gpu.vram_free <= gpu.vram_total for gpu in found.gpus)
