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


class FakeLauncher(LlamaCppLauncher):
    """Plans, diagnoses and relaxes like llama.cpp; runs `tests/fakes/engine.py`."""

    name: EngineName = "llama_cpp"
    version = "fake"

    def __init__(self, knobs: Sequence[str] = (), serial: bool = True) -> None:
        self.knobs = tuple(knobs)
        self.memory_max: int | None = None
        if "--memory-max" in self.knobs:  # the only knob that is the launcher's: bytes
            at = self.knobs.index("--memory-max")
            self.memory_max = int(self.knobs[at + 1])
            self.knobs = self.knobs[:at] + self.knobs[at + 2 :]
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
        if isinstance(fit, Rejection) or self.serial:
            return fit
        tuning = fit.tuning.model_copy(update={"max_concurrency": 16})
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
