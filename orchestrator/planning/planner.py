"""From hardware, model and wishes to one EnginePlan with its reasons. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from engine_launchers.base import EngineName, EnginePlan, Expected, Fit, Launcher, Rejection, Tuning
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.value import Value
from orchestrator.errors import NoEngineFits
from orchestrator.planning.tiers import Tier, choose_tier

_ENGINES: tuple[EngineName, ...] = ("vllm", "llama_cpp", "pytorch")


class Wish(Value):
    """What a person set; None means: choose. Whatever is set here is pinned.

    `force_cpu` tells this wish from one with GPUs; the caller gives a machine without them.
    """

    engine: EngineName | None = None
    max_model_len: int | None = None
    threads: int | None = None
    force_cpu: bool = False

    def fingerprint(self, model: ModelSpec, version: str, changed_ns: int) -> str:
        """Names this wish for this very model file and engine version.

        What the machine had free when a plan was made is no part of it: an engine that runs takes
        memory that the next plan does not find.
        """
        parts = (self.model_dump_json(), model.source, model.weight_bytes, version, changed_ns)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def pinned(self) -> frozenset[str]:
        """Names of the tuning fields that must not be changed."""
        chosen = {"max_model_len": self.max_model_len, "threads": self.threads}
        return frozenset(name for name, value in chosen.items() if value is not None)


def make_plan(
    model: ModelSpec,
    hardware: HardwareProfile,
    tiers: tuple[Tier, ...],
    launchers: Mapping[EngineName, Launcher],
    wish: Wish,
) -> EnginePlan:
    """The tier's engine if it can run the model here, else the next one, with every refusal kept.

    Raises NoEngineFits with all reasons.
    """
    tier = choose_tier(tiers, hardware)
    reasons = [f"tier {tier.name}: {_describe(hardware)}"]
    rejected: list[Rejection] = []
    order = (wish.engine,) if wish.engine else _preference(tier)
    if wish.engine:
        reasons.append(f"engine {wish.engine} was asked for")
    for engine in order:
        launcher = launchers.get(engine)
        if launcher is None:
            rejected.append(Rejection(what=engine, why="this version cannot start it yet"))
            continue
        fit = launcher.fit(model, hardware, _tuning(tier, wish, model, len(hardware.gpus)))
        fit = _keep_pins(engine, fit, wish)
        if isinstance(fit, Rejection):
            rejected.append(fit)
            continue
        return _plan(model, launcher, tier, fit, wish, reasons, rejected)
    told = "; ".join(f"{r.what}: {r.why}" for r in rejected)
    raise NoEngineFits(f"no engine can run {model.id} here: {told}")


def _preference(tier: Tier) -> tuple[EngineName, ...]:
    return (tier.backend, *(engine for engine in _ENGINES if engine != tier.backend))


def _tuning(tier: Tier, wish: Wish, model: ModelSpec, gpus: int) -> Tuning:
    return Tuning(
        max_model_len=wish.max_model_len or min(tier.max_context, model.context_max),
        max_concurrency=tier.max_batch,
        gpu_memory_fraction=tier.gpu_memory_utilization,
        gpu_layers=tier.gpu_layers,
        flash_attention=tier.flash_attention,
        tensor_parallel=gpus if tier.tensor_parallel == "all" else None,
        quantization=tier.quantization,
        threads=wish.threads,
    )


def _keep_pins(engine: EngineName, fit: Fit | Rejection, wish: Wish) -> Fit | Rejection:
    if isinstance(fit, Rejection) or wish.max_model_len is None:
        return fit
    possible = fit.tuning.max_model_len or 0
    if possible >= wish.max_model_len:
        return fit
    why = f"context {wish.max_model_len} was asked for, {possible} is possible"
    return Rejection(what=engine, why=why)


def _plan(
    model: ModelSpec,
    launcher: Launcher,
    tier: Tier,
    fit: Fit,
    wish: Wish,
    reasons: list[str],
    rejected: list[Rejection],
) -> EnginePlan:
    if model.quantization != tier.quantization:
        reasons.append(f"precision {model.quantization}: what the file holds")
    expected = Expected()
    if tier.expected and launcher.name == tier.backend:
        expected = Expected(
            tokens_per_second=tier.expected.tokens_per_second,
            ttft_seconds=(tier.expected.ttft_ms[0] / 1000, tier.expected.ttft_ms[1] / 1000),
            source="the hosting guide's table for a 7B model; not measured here",
        )
    precision = model.quantization.lower().replace("_", "-")
    return EnginePlan(
        id=f"{launcher.name.replace('_', '-')}-{precision}-tp1",
        engine=launcher.name,
        engine_version=launcher.version,
        tier=tier.name,
        model=model,
        tuning=fit.tuning,
        pinned=wish.pinned(),
        estimate=fit.estimate,
        expected=expected,
        reasons=(*reasons, *fit.reasons),
        rejected=tuple(rejected),
    )


def _describe(hardware: HardwareProfile) -> str:
    if not hardware.gpus:
        return "no GPU detected"
    names = ", ".join(f"{gpu.name} {gpu.vram_total / 2**30:.0f} GiB" for gpu in hardware.gpus)
    return f"{len(hardware.gpus)} GPU: {names}"
