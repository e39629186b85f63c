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
from engine_launchers.series import SeriesRule
from engine_launchers.watch import Call, PhaseRule, SleepTraits, WatchTraits

ENGINE = Path(__file__).with_name("engine.py")
WATCH = WatchTraits(
    metrics_path="/metrics",
    counters=("fake_tokens_total", "fake_iterations_total"),
    phases=(
        PhaseRule(
            pattern=r"Loading weights:\s+(?P<percent>\d+)%", name="loading", percent=0, until=90
        ),
        PhaseRule(pattern="listening on", name="first token", percent=95),
    ),
    series=(
        SeriesRule(ours="generated_tokens_total", theirs="fake_tokens_total"),
        SeriesRule(ours="steps_total", theirs="fake_iterations_total"),
    ),
)
SLEEP = SleepTraits(down={1: (Call(path="/sleep?level=1"),)}, up={1: (Call(path="/wake_up"),)})


def _own(knobs: tuple[str, ...], name: str) -> tuple[int | None, tuple[str, ...]]:
    """The number after a knob that is the launcher's, and the engine's knobs without it."""
    if name not in knobs:
        return None, knobs
    at = knobs.index(name)
    return int(knobs[at + 1]), knobs[:at] + knobs[at + 2 :]


class FakeLauncher(LlamaCppLauncher):
    """Plans, diagnoses and relaxes like llama.cpp; runs `tests/fakes/engine.py`.

    Four knobs are its own: `--claims BYTES` of RAM are planned, whatever the model; `--slots N`
    requests at once instead of 16 where it is not serial; `--memory-max BYTES` for its control
    group; `--no-metrics`: it does not know of the fake's counters.
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
        self.watch = WATCH.model_copy(
            update={
                "metrics_path": None if "--no-metrics" in self.knobs else WATCH.metrics_path,
                "serial": serial,
                "sleep": SLEEP if "--can-sleep" in self.knobs else None,
            }
        )

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
            *("--model", plan.model.id, *(k for k in self.knobs if k != "--no-metrics")),
            *(("--serial",) if self.serial else ()),
        )
        # The fake has no context: the plan's stands in its environment, to tell plans apart.
        env = {"FAKE_CONTEXT": str(plan.tuning.max_model_len)}
        return LaunchSpec(
            argv=argv, env=env, listen=listen, vital=("FAKE::",), memory_max=self.memory_max,
            files=(str(ENGINE),),
        )  # fmt: skip
