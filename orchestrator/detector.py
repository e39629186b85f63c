"""HardwareDetector: a machine and what the hosting guide's table recommends for it."""

from __future__ import annotations

import logging
from enum import StrEnum

from rich.console import Console
from rich.table import Table

from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value
from orchestrator.hardware import probe
from orchestrator.planning.tiers import choose_tier, nominal_gb
from orchestrator.tables import load_tiers

_log = logging.getLogger("orchestrator.detector")
_GIB = 2**30


class InferenceBackend(StrEnum):
    """An engine, by the name that settings and plans use."""

    VLLM = "vllm"
    LLAMA_SERVER = "llama_server"
    LLAMA_CPP = "llama_cpp"
    PYTORCH = "pytorch"


class HardwareTier(StrEnum):
    """A row of the hosting guide's table (`configs/tiers.yaml`)."""

    CPU_ONLY = "CPU_ONLY"
    LOW_VRAM = "LOW_VRAM"
    CONSUMER = "CONSUMER"
    PROSUMER = "PROSUMER"
    DATACENTER = "DATACENTER"
    MULTI_GPU = "MULTI_GPU"


class Quantization(StrEnum):
    """A precision of weights that a tier may ask for."""

    Q4_K_M = "Q4_K_M"
    Q5_K_M = "Q5_K_M"
    Q8_0 = "Q8_0"
    AWQ = "AWQ"
    GPTQ = "GPTQ"
    NF4 = "NF4"
    INT8 = "INT8"
    FP8 = "FP8"
    FP16 = "FP16"
    BF16 = "BF16"


class RecommendedConfig(Value):
    """What the table recommends for a machine, before the model is known.

    `max_context` is in tokens, `max_batch` in sequences, `gpu_memory_utilization` a share of a
    card's memory, `gpu_layers` how many layers go to it, `tensor_parallel` over how many cards a
    model is split. None means: the engine's own default.
    """

    tier: HardwareTier
    backend: InferenceBackend
    quantization: Quantization
    max_batch: int
    max_context: int
    gpu_memory_utilization: float | None = None
    flash_attention: bool | None = None
    gpu_layers: int | None = None
    tensor_parallel: int | None = None


class HardwareDetector:
    """Looks at this machine.

    `verbose` logs each finding to the logger `orchestrator.detector` at level DEBUG, and lets
    `print_summary` add what could not be read and why.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self._profile: HardwareProfile | None = None

    def detect(self) -> HardwareProfile:
        """Look, anew at every call.

        `gpu_count` and `total_vram_gb` (GiB) are 0 on a machine without a GPU, and `best_gpu` is
        None there: ask before you take its `name`.
        """
        profile = probe()
        self._profile = profile
        if self.verbose:
            for name, found in _findings(profile):
                _log.debug("%s: %s", name, found)
            for note in profile.notes:
                _log.debug("note: %s", note)
        return profile

    def get_recommended_config(self) -> RecommendedConfig:
        """The table's row for the machine as it was last detected; detects if it was not yet."""
        profile = self._detected()
        config = recommend(profile)
        if self.verbose:
            _log.debug("tier %s: %s", config.tier.name, _why(profile))
        return config

    def print_summary(self) -> None:
        """Print the machine and its recommendation as a table, to standard output."""
        profile, config = self._detected(), self.get_recommended_config()
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, found in (*_findings(profile), *_recommendations(config)):
            table.add_row(name, found)
        if self.verbose:
            for note in profile.notes:
                table.add_row("note", note)
        Console(highlight=False, markup=False).print(table)

    def _detected(self) -> HardwareProfile:
        return self.detect() if self._profile is None else self._profile


def recommend(profile: HardwareProfile) -> RecommendedConfig:
    """The row of `configs/tiers.yaml` for a machine."""
    tier = choose_tier(load_tiers(), profile)
    return RecommendedConfig(
        tier=HardwareTier(tier.name),
        backend=InferenceBackend(tier.backend),
        quantization=Quantization(tier.quantization),
        max_batch=tier.max_batch,
        max_context=tier.max_context,
        gpu_memory_utilization=tier.gpu_memory_utilization,
        flash_attention=tier.flash_attention,
        gpu_layers=tier.gpu_layers,
        tensor_parallel=profile.gpu_count if tier.tensor_parallel == "all" else None,
    )


def _findings(profile: HardwareProfile) -> tuple[tuple[str, str], ...]:
    rows = [
        ("platform", profile.platform),
        ("processor", profile.cpu_name or "unknown"),
        ("cores", f"{profile.cpu_cores} physical, usable"),
        ("instructions", " ".join(profile.isa) or "unknown"),
        ("memory", f"{_gib(profile.ram_available)} available of {_gib(profile.ram_total)}"),
        ("GPUs", str(profile.gpu_count)),
    ]
    for gpu in profile.gpus:
        parts = [gpu.name, f"{_gib(gpu.vram_free)} free of {_gib(gpu.vram_total)}"]
        if gpu.compute_capability:
            parts.append("compute capability {}.{}".format(*gpu.compute_capability))
        if gpu.driver:
            parts.append(f"driver {gpu.driver}")
        rows.append((f"GPU {gpu.index}", ", ".join(parts)))
    if profile.gpus:
        rows.append(("total VRAM", f"{profile.total_vram_gb:.1f} GiB"))
    return tuple(rows)


def _recommendations(config: RecommendedConfig) -> tuple[tuple[str, str], ...]:
    return (
        ("tier", config.tier.name),
        ("backend", config.backend.value),
        ("quantization", config.quantization.value),
        ("context", f"up to {config.max_context} tokens"),
        ("batch", f"up to {config.max_batch}"),
    )


def _why(profile: HardwareProfile) -> str:
    if not profile.gpus:
        return "no GPU detected"
    smallest = min(nominal_gb(gpu.vram_total) for gpu in profile.gpus)
    return f"{profile.gpu_count} GPUs, the smallest of {smallest:g} GB"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
