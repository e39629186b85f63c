"""The table of accelerators: consistent in itself, and every name finds its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_launchers.machine import Gpu
from orchestrator.errors import ConfigError
from orchestrator.planning.gpus import GpuSpec, GpuTable, parse_gpus
from orchestrator.resources import config_path

MIB = 2**20
TABLE = parse_gpus(yaml.safe_load(config_path("gpus.yaml").read_text()))
BY_NAME = {spec.name: spec for spec in TABLE.gpus}
FIXTURE = Path(__file__).parents[1] / "fixtures/truth/gpus.jsonl"
TRUTH: list[dict[str, Any]] = [json.loads(line) for line in FIXTURE.read_text().splitlines()]


def found(name: str) -> str | None:
    spec = TABLE.find(name)
    return spec.name if spec else None


def probed(name: str, mib: int, vendor: str = "nvidia", **more: Any) -> Gpu:
    return Gpu.model_validate(
        {"index": 0, "uuid": "u", "name": name, "vendor": vendor, "vram_total": mib * MIB,
         "vram_free": 0, **more}
    )  # fmt: skip


def test_the_table_is_wide() -> None:
    assert len(TABLE.gpus) >= 60
    assert {spec.vendor for spec in TABLE.gpus} == {"nvidia", "amd", "apple", "intel"}


@pytest.mark.parametrize("spec", TABLE.gpus, ids=lambda spec: spec.name)
def test_a_row_is_consistent(spec: GpuSpec) -> None:
    rates = spec.tflops
    if rates.fp16 is not None:
        assert rates.fp16 >= rates.fp32
    if rates.bf16 is not None:
        assert rates.fp32 <= rates.bf16 <= (rates.fp16 or 0)
    if rates.fp8 is not None:
        assert rates.bf16 is not None
        assert rates.fp8 == pytest.approx(2 * rates.bf16, rel=0.03)
    if rates.int8 is not None:
        assert rates.int8 >= (rates.fp8 or rates.bf16 or rates.fp16 or rates.fp32)
    if spec.reported_mib is not None:
        assert 0.93 * spec.memory_gb <= spec.reported_mib / 1024 <= 1.03 * spec.memory_gb
    assert (spec.link is None) == spec.unified
    if spec.vendor == "nvidia":
        assert spec.compute_capability is not None
        assert (rates.fp8 is not None) == (spec.compute_capability >= (8, 9))
        assert (rates.bf16 is not None) == (spec.compute_capability >= (8, 0))
    else:
        assert spec.compute_capability is None
        assert spec.link is None or spec.link.kind != "nvlink"


@pytest.mark.parametrize("spec", TABLE.gpus, ids=lambda spec: spec.name)
def test_every_name_of_a_row_finds_a_row_that_has_it(spec: GpuSpec) -> None:
    assert TABLE.find(spec.name) == spec
    assert TABLE.find(spec.name.upper().replace(" ", "")) == spec
    for pattern in spec.match:
        other = TABLE.find(pattern)
        assert other is not None
        assert set(other.patterns) & set(spec.patterns)
        assert TABLE.find(pattern, spec.memory_gb) == spec


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: str(row["name"]))
def test_every_card_of_the_published_logs_is_known(row: dict[str, Any]) -> None:
    for mib in (row["nvidia_smi_mib"], *row["also_seen_mib"]):
        spec = TABLE.of(probed(row["name"], mib))
        assert spec is not None
        assert spec.memory_gb == row["nominal_gb"]
        assert spec.reported_mib in (row["nvidia_smi_mib"], None)
        assert spec.compute_capability is not None
        assert "{}.{}".format(*spec.compute_capability) == row["compute_capability"]
    assert TABLE.find(row["name"]) == spec


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIAGeForceRTX4070TiLaptopGPU", None),
        ("NVIDIAGeForceRTX3070TiLaptopGPU", "RTX 3070 Ti Laptop"),
        ("titanrtx", "TITAN RTX"),
        (" nvidia  GEFORCE rtx-4090 ", "RTX 4090"),
        ("RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
        ("4080 mobile", "RTX 4080 Laptop"),
        ("4070 ti super", "RTX 4070 Ti SUPER"),
        ("RTX 4060 Ti", "RTX 4060 Ti 8GB"),
        ("RTX 4060 Ti 16GB", "RTX 4060 Ti 16GB"),
        ("A100", "A100 SXM4 80GB"),
        ("A100-40GB", "A100 SXM4 40GB"),
        ("A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("H100", "H100 SXM"),
        ("H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("h200", "H200"),
        ("V100 32GB", "V100 SXM2 32GB"),
        ("L4", "L4"),
        ("L40", "L40"),
        ("L40S", "L40S"),
        ("RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GB10", "GB10"),
        ("M3", "M3"),
        ("Apple M3 Max (128GB)", "M3 Max"),
        ("AMD Instinct MI300X", "MI300X"),
        ("AMD Radeon RX 7900 XTX (RADV NAVI31)", "RX 7900 XTX"),
        ("7900 xt", "RX 7900 XT"),
        ("AMD RYZEN AI MAX+ 395 w/ Radeon 8060S", "Ryzen AI Max+ 395"),
        ("Intel(R) Arc(TM) A770 Graphics", "Arc A770 16GB"),
        ("b580", "Arc B580"),
    ],
)
def test_the_names_that_people_and_drivers_use(name: str, card: str | None) -> None:
    assert found(name) == card


@pytest.mark.parametrize(
    "name",
    ["", "GPU", "NVIDIA", "RTX", "Max", "RTX 6000", "RTX 5090D", "GTX 1080 Ti Laptop GPU",
     "GRID A100-10C", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "RTX 3080 20GB", "AMD Radeon Graphics"],
)  # fmt: skip
def test_another_card_is_not_taken_for_a_known_one(name: str) -> None:
    assert found(name) is None


@pytest.mark.parametrize(
    ("name", "mib", "card"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "RTX 4060 Ti 8GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 3080", 12288, "RTX 3080 12GB"),
        ("NVIDIA GeForce RTX 2060", 6144, "RTX 2060"),
        ("NVIDIA GeForce RTX 2060", 12288, "RTX 2060 12GB"),
        ("NVIDIA H100", 95830, "H100 NVL"),
        ("A100", 40536, "A100 SXM4 40GB"),
        ("NVIDIA GeForce RTX 4090", 49140, "RTX 4090"),  # rebuilt with twice the memory
    ],
)
def test_memory_decides_between_cards_of_one_name(name: str, mib: int, card: str) -> None:
    assert TABLE.of(probed(name, mib)) == BY_NAME[card]


def test_a_slice_another_vendor_and_shared_memory() -> None:
    assert TABLE.of(probed("NVIDIA A100-SXM4-80GB", 9728, mig=True)) is None
    assert TABLE.of(probed("NVIDIA L4", 23034, vendor="intel")) is None
    mac = probed("Apple M3 Max", 49152, vendor="apple", unified=True)
    assert TABLE.of(mac) == BY_NAME["M3 Max"]


def test_an_unknown_name_is_answered_with_what_looks_like_it() -> None:
    assert TABLE.suggestions("RTX 4O90")[0] == "RTX 4090"
    assert {"Quadro RTX 6000", "RTX 6000 Ada"} <= set(TABLE.suggestions("RTX 6000"))
    assert TABLE.suggestions("") == ()
    assert len(TABLE.suggestions("rtx 40", count=5)) == 5


def test_units() -> None:
    spec = BY_NAME["H100 SXM"]
    assert spec.bandwidth == 3_352_000_000_000
    assert spec.flops("bf16") == pytest.approx(989.4e12)
    assert BY_NAME["T4"].flops("bf16") is None


GOOD: dict[str, Any] = {
    "name": "X1", "vendor": "nvidia", "memory_gb": 8, "bandwidth_gb_s": 100, "tflops": {"fp32": 1},
}  # fmt: skip


def test_a_small_table() -> None:
    assert parse_gpus({"gpus": [GOOD]}) == GpuTable(gpus=(GpuSpec.model_validate(GOOD),))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "list named `gpus`"),
        ({}, "list named `gpus`"),
        ({"gpus": 3}, "list named `gpus`"),
        ({"gpus": ["X1"]}, "row 1: the row"),
        ({"gpus": [{**GOOD, "memory_gb": 0}]}, "row X1: memory_gb"),
        ({"gpus": [{**GOOD, "bandwidth": 3}]}, "row X1: bandwidth"),
        ({"gpus": [{**GOOD, "tflops": {"fp32": -1}}]}, "row X1: tflops.fp32"),
        ({"gpus": [{**GOOD, "match": ["NVIDIA GPU"]}]}, "names no card"),
        ({"gpus": [{**GOOD, "name": "NVIDIA"}]}, "names no card"),
        ({"gpus": [GOOD, {**GOOD, "name": "x 1"}]}, "row x 1: name: another row"),
    ],
)
def test_a_bad_table_is_refused_by_row_and_field(data: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_gpus(data)
