"""The data that ships with this version, read and parsed: tiers and accelerators."""

from __future__ import annotations

from typing import Any

import yaml

from orchestrator.planning.gpus import GpuTable, parse_gpus
from orchestrator.planning.tiers import Tier, parse_tiers
from orchestrator.resources import config_path


def _read(name: str) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with config_path(name).open() as file:
        return yaml.load(file, Loader=loader)  # noqa: S506 - a safe loader


def load_tiers() -> tuple[Tier, ...]:
    """`configs/tiers.yaml`. Raises ConfigError."""
    return parse_tiers(_read("tiers.yaml"))


def load_gpus() -> GpuTable:
    """`configs/gpus.yaml`. Raises ConfigError."""
    return parse_gpus(_read("gpus.yaml"))
