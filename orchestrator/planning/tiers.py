"""The hosting guide's hardware tiers, as data. Pure: the caller reads `configs/tiers.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value
from orchestrator.errors import ConfigError


class TierSpeed(Value):
    """The documents' expectation for a 7B model: [from, to]."""

    tokens_per_second: tuple[float, float]
    ttft_ms: tuple[float, float]


class Tier(Value):
    """One row of the table. `gpus` is inclusive, `vram_gb` (nominal, smallest card) half-open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gpus: tuple[int, int]
    vram_gb: tuple[float, float] | None = None
    backend: EngineName
    quantization: str
    max_batch: int
    max_context: int
    flash_attention: bool | None = None
    gpu_layers: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel: Literal["all"] | None = None
    expected: TierSpeed | None = None


def parse_tiers(data: Mapping[str, Any]) -> tuple[Tier, ...]:
    """Validate the content of `tiers.yaml`. Raises ConfigError."""
    try:
        return tuple(Tier.model_validate(row) for row in data["tiers"])
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"tiers.yaml: {error}") from error


def nominal_gb(vram_total: int) -> float:
    """The size printed on the box: a card that reports 8188 MiB is an 8 GB card.

    Drivers and ECC keep back up to 7 % of what a card has (a 24 GB A10 reports 23028 MiB), so the
    reported GiB are rounded up when the next whole number is that near.
    """
    reported = vram_total / 2**30
    above = float(-(-reported // 1))
    return above if reported >= above * 0.93 else reported


def choose_tier(tiers: tuple[Tier, ...], hardware: HardwareProfile) -> Tier:
    """The first tier whose conditions hold."""
    count = len(hardware.gpus)
    smallest = min((nominal_gb(gpu.vram_total) for gpu in hardware.gpus), default=0.0)
    for tier in tiers:
        in_count = tier.gpus[0] <= count <= tier.gpus[1]
        in_size = tier.vram_gb is None or tier.vram_gb[0] <= smallest < tier.vram_gb[1]
        if in_count and in_size:
            return tier
    raise ConfigError(f"tiers.yaml: no tier covers {count} GPUs of {smallest:g} GB")
