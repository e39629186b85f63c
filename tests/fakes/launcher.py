"""A launcher for the fake engine: it stands where llama.cpp stands, with knobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine_launchers.base import (
    EngineName,
    EnginePlan,
    Fit,
    LaunchSpec,
    Listen,
    Quirks,
    Rejection,
    Tuning,
)
from engine_launchers.llama_cpp import LlamaCppLauncher
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec

ENGINE = Path(__file__).with_name("engine.py")


def _own(knobs: tuple[str, ...], name: str) -> tuple[int | None, tuple[str, ...]]:
    """The number after a knob that is the launcher's, and the engine's knobs without it."""
    if name not in knobs:
        return None, knobs
    at = knobs.index(name)
    return int(knobs[at + 1]), knobs[:at] + knobs[at + 2 :]


class FakeLauncher(LlamaCppLauncher):
    """Plans, diagnoses and relaxes like llama.cpp; runs `tests/fakes/engine.py`.

    Three knobs are its own: `--claims BYTES` of RAM are planned, whatever the model; `--slots N`
    requests at once instead of 16 where it is not serial; `--memory-max BYTES` for its control
    group.
    """

    name: EngineName = "llama_cpp"
    version = "fake"

    def __init__(self, knobs: Sequence[str] = (), serial: bool = True) -> None:
        self.claims, rest = _own(tuple(knobs), "--claims")
        slots, rest = _own(rest, "--slots")
        self.memory_max, self.knobs = _own(rest, "--memory-max")
        self.slots = slots or 16
        self.serial = serial
        real = LlamaCppLauncher.quirks
        asked = {"tokenize_path": None, "usage_on_request": True}  # as vLLM and llama-server do
        changed = asked if "--usage-in-stream" in self.knobs else {}
        self.quirks: Quirks = real.model_copy(update=changed)

    def fit(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        wish: Tuning,
        pinned: frozenset[str] = frozenset(),
    ) -> Fit | Rejection:
        fit = super().fit(model, hardware, wish, pinned)
        if isinstance(fit, Rejection):
            return fit
        if self.claims is not None:
            (ram, *rest) = fit.estimate
            estimate = (ram.model_copy(update={"overhead": self.claims}), *rest)
            fit = fit.model_copy(update={"estimate": estimate})
        if self.serial:
            return fit
        tuning = fit.tuning.model_copy(update={"max_concurrency": self.slots})
        return fit.model_copy(update={"tuning": tuning})

    def command(self, plan: EnginePlan, listen: Listen) -> LaunchSpec:
        argv = (
            *("{engine}", str(ENGINE), "--host", listen.host, "--port", str(listen.port)),
            *("--model", plan.model.id, *self.knobs),
            *(("--serial",) if self.serial else ()),
        )
        # The fake has no context: the plan's stands in its environment, to tell plans apart.
        env = {"FAKE_CONTEXT": str(plan.tuning.max_model_len)}
        return LaunchSpec(
            argv=argv, env=env, listen=listen, vital=("FAKE::",), memory_max=self.memory_max
        )
