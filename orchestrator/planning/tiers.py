"""The hosting guide's hardware tiers, as data. Pure: the caller reads `configs/tiers.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from engine_launchers.base import EngineName
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.value import Value
from orchestrator.errors import ConfigError

# GiB that accelerators are sold with, or lend out in fixed parts.
_SOLD = (
    1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 22, 24, 32, 40, 48, 64, 72, 80, 94, 96, 128, 141, 144,
    180, 186, 192, 256, 288,
)  # fmt: skip
_KEPT_BACK = 0.917  # an L4's CUDA-visible 22.03 GiB of 24 is the least that was seen


class TierSpeed(Value):
    """The documents' expectation for one model: [from, to], and all requests of a batch together.

    `model` names model and precision that were meant. Where they give no batch rate it is None.
    """

    model: str | None = None
    tokens_per_second: tuple[float, float]
    ttft_ms: tuple[float, float]
    batch_tokens_per_second: float | None = None


class Tier(Value):
    """One row of the table. `gpus` is inclusive, `vram_gb` (nominal, smallest card) half-open.

    `quantization_hopper` is the alternative that the documents name for Hopper cards. `models` are
    their examples for the tier, not a limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gpus: tuple[int, int]
    vram_gb: tuple[float, float] | None = None
    backend: EngineName
    quantization: str
    quantization_hopper: str | None = None
    max_batch: int
    max_context: int
    flash_attention: bool | None = None
    gpu_layers: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel: Literal["all"] | None = None
    models: tuple[str, ...] = ()
    expected: TierSpeed | None = None

    def quantizations(self, hardware: HardwareProfile) -> tuple[str, ...]:
        """The tier's precision, then what it may be exchanged for on these cards."""
        hopper = hardware.gpus and all(
            gpu.compute_capability is not None and gpu.compute_capability[0] == 9
            for gpu in hardware.gpus
        )
        if self.quantization_hopper and hopper:
            return (self.quantization, self.quantization_hopper)
        return (self.quantization,)


def parse_tiers(data: Mapping[str, Any]) -> tuple[Tier, ...]:
    """Validate the content of `tiers.yaml`. Raises ConfigError."""
    try:
        return tuple(Tier.model_validate(row) for row in data["tiers"])
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"tiers.yaml: {error}") from error


def nominal_gb(vram_total: int) -> float:
    """The size printed on the box, in GiB: a card that reports 8188 MiB is an 8 GB card.

    Driver, context and ECC (1/16) keep back up to 8 % of what a card has: a 16 GB T4 reports 15360
    MiB. So the next size that is sold is meant if it is that near, else what is reported is taken
    as it is. Never below what is reported, and a larger report is never a smaller card.
    """
    reported = vram_total / 2**30
    for sold in _SOLD:
        if reported <= sold:
            return float(sold) if reported >= sold * _KEPT_BACK else reported
    return reported


def _size_gb(gpu: Gpu) -> float:
    """What the tiers go by. Shared memory has no size on a box: what is reported counts."""
    return gpu.vram_total / 2**30 if gpu.unified else nominal_gb(gpu.vram_total)


def choose_tier(tiers: tuple[Tier, ...], hardware: HardwareProfile) -> Tier:
    """The first tier whose conditions hold; of unequal cards the smallest decides."""
    count = len(hardware.gpus)
    smallest = min((_size_gb(gpu) for gpu in hardware.gpus), default=0.0)
    for tier in tiers:
        in_count = tier.gpus[0] <= count <= tier.gpus[1]
        in_size = tier.vram_gb is None or tier.vram_gb[0] <= smallest < tier.vram_gb[1]
        if in_count and in_size:
            return tier
    raise ConfigError(f"tiers.yaml: no tier covers {count} GPUs of {smallest:g} GB")
