"""What the library says without a server: its names, its types, the detector, misuse."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import assert_type

import pytest
import yaml

import orchestrator
import orchestrator.startup
from engine_launchers.base import EnginePlan
from engine_launchers.machine import Gpu, HardwareProfile
from orchestrator import (
    AdaptiveInferenceEngine,
    HardwareDetector,
    HardwareTier,
    InferenceBackend,
    PyTorchEngine,
    Quantization,
)
from orchestrator.child import private_folder
from orchestrator.detector import recommend
from orchestrator.envelopes import from_envelope
from orchestrator.errors import (
    BadRequest,
    ConfigError,
    EngineRoomError,
    QueueFull,
    UnknownModel,
    UpstreamBroken,
)
from orchestrator.loaded import request_body
from orchestrator.planning.tiers import parse_tiers
from orchestrator.resources import config_path
from tests.harness import ROOT

GIB = 2**30


def machine(*vram_gib: int) -> HardwareProfile:
    gpus = tuple(
        Gpu(index=i, uuid=str(i), name="card", vendor="nvidia", vram_total=g * GIB, vram_free=0)
        for i, g in enumerate(vram_gib)
    )
    return HardwareProfile(
        gpus=gpus, ram_total=GIB, ram_available=GIB, cpu_cores=4, platform="linux-x86_64"
    )


# --- the package ---


def test_importing_the_package_loads_nothing_of_the_library() -> None:
    code = (
        "import sys, orchestrator; assert orchestrator.__version__; dir(orchestrator)\n"
        "heavy = {'httpx', 'pydantic', 'rich', 'orchestrator.adaptive'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from orchestrator import AdaptiveInferenceEngine, HardwareDetector, InferenceBackend\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_the_stub_has_the_very_names_of_the_package() -> None:
    tree = ast.parse((ROOT / "orchestrator" / "__init__.pyi").read_text())
    typed = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    assert typed | {"__version__"} == set(vars(orchestrator)["__all__"])
    for name in typed:
        assert getattr(orchestrator, str(name)).__name__ == name
    with pytest.raises(AttributeError, match="Adaptive"):
        getattr(orchestrator, "Adaptive")  # noqa: B009 - the stub knows no such name


# --- the detector ---


def test_the_documents_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    detector = HardwareDetector()
    profile = detector.detect()
    print(f"GPUs: {profile.gpu_count}")
    print(f"Total VRAM: {profile.total_vram_gb:.1f} GB")
    if profile.best_gpu:
        print(f"Best GPU: {profile.best_gpu.name}")
    config = detector.get_recommended_config()
    print(f"Tier: {config.tier.name}")
    print(f"Backend: {config.backend.value}")
    print(f"Quantization: {config.quantization.value}")
    assert f"Tier: {recommend(profile).tier}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpus", "tier", "backend", "quantization", "split"),
    [
        ((), "CPU_ONLY", "llama_cpp", "Q4_K_M", None),
        ((6,), "LOW_VRAM", "llama_cpp", "Q4_K_M", None),
        ((12,), "CONSUMER", "vllm", "AWQ", None),
        ((24,), "PROSUMER", "vllm", "FP16", None),
        ((80,), "DATACENTER", "vllm", "BF16", None),
        ((24, 24), "MULTI_GPU", "vllm", "FP16", 2),
    ],
)
def test_every_tier_becomes_a_recommendation(
    gpus: tuple[int, ...], tier: str, backend: str, quantization: str, split: int | None
) -> None:
    config = recommend(machine(*gpus))
    assert (config.tier.name, config.backend.value, config.quantization.value) == (
        tier, backend, quantization,
    )  # fmt: skip
    assert config.tensor_parallel == split


def test_the_enums_know_all_that_the_table_names() -> None:
    rows = parse_tiers(yaml.safe_load(config_path("tiers.yaml").read_text()))
    assert {row.name for row in rows} == {tier.name for tier in HardwareTier}
    assert {row.quantization for row in rows} <= {each.value for each in Quantization}
    assert {row.backend for row in rows} <= {each.value for each in InferenceBackend}


def test_the_summary_is_a_table_and_verbose_adds_the_notes(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    HardwareDetector().print_summary()
    quiet = capsys.readouterr().out
    assert not [r for r in caplog.records if r.name == "orchestrator.detector"]
    detector = HardwareDetector(verbose=True)
    detector.print_summary()
    told = capsys.readouterr().out
    profile = detector.detect()
    config = detector.get_recommended_config()
    for word in (config.tier.name, config.backend.value, config.quantization.value, "memory"):
        assert word in quiet
    assert told.count("note") >= len(profile.notes) > quiet.count("note") or not profile.notes
    logged = [r.getMessage() for r in caplog.records if r.name == "orchestrator.detector"]
    assert any(line.startswith(f"tier {config.tier.name}: ") for line in logged)


# --- the engine, before anything is loaded ---


def test_what_needs_a_model_says_so(tmp_path: Path) -> None:
    with AdaptiveInferenceEngine(data_dir=tmp_path) as engine:
        assert engine.model is None
        assert_type(engine.hardware, HardwareProfile)
        for use in (
            lambda: engine.generate("Hi"),
            lambda: engine.generate_stream("Hi"),
            lambda: assert_type(engine.plan, EnginePlan),
        ):
            with pytest.raises(UnknownModel, match="call load_model first"):
                use()
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_a_backend_is_one_of_the_known(tmp_path: Path) -> None:
    engine = AdaptiveInferenceEngine(auto_detect=False, data_dir=tmp_path)
    with pytest.raises(ConfigError, match="auto_detect=False: give load_model a backend"):
        engine.load_model("demo")
    with pytest.raises(ConfigError, match="none of vllm, llama_server, llama_cpp, pytorch"):
        engine.load_model("demo", backend="vlm")
    pytorch = PyTorchEngine(data_dir=tmp_path)
    with pytest.raises(ConfigError, match="choose one"):
        pytorch.load_model("x", load_in_4bit=True, load_in_8bit=True)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked_where_they_are_given(tmp_path: Path) -> None:
    for wrong, words in (
        ({"prot": 1}, "argument prot: unknown key 'prot'; did you mean port"),
        ({"port": 9000}, "argument port: not for here"),
        ({"model": "demo"}, "argument model: not for here"),
        ({"drain_s": -1}, "argument drain_s"),
    ):
        with pytest.raises(ConfigError, match=words):
            AdaptiveInferenceEngine(data_dir=tmp_path, **wrong)
    with pytest.raises(ConfigError, match="argument context"):
        AdaptiveInferenceEngine(data_dir=tmp_path).load_model("demo", context=1)
    with pytest.raises(ConfigError, match="argument model_path"):
        AdaptiveInferenceEngine(data_dir=tmp_path).load_model("")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        AdaptiveInferenceEngine(data_dir=tmp_path / "file").load_model("demo")


def test_folders_of_servers_that_died_long_ago_are_removed(tmp_path: Path) -> None:
    dead, fresh = private_folder(tmp_path), private_folder(tmp_path)
    (dead / "supervisor.lock").touch()
    os.utime(dead, (1, 1))
    third = private_folder(tmp_path)
    assert set(tmp_path.iterdir()) == {fresh, third}
    assert third.stat().st_mode & 0o777 == 0o700


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(BadRequest, match="Out of range float"):
        request_body("Hi", 1, float("nan"), 1.0, 1.0, None, None, True)


def test_errors_come_back_as_the_classes_they_were() -> None:
    for error in (QueueFull("full"), UpstreamBroken("died"), BadRequest("no", param="top_p")):
        envelope = error.envelope()["error"]
        assert isinstance(envelope, dict)
        back = from_envelope(envelope)
        assert type(back) is type(error)
        assert (back.message, back.param, back.retryable) == (
            error.message, error.param, error.retryable,
        )  # fmt: skip
    strange = from_envelope({"code": "from_the_future", "message": "m"})
    assert (type(strange), strange.code) == (EngineRoomError, "from_the_future")
