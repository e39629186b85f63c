"""What would run: plans for any machine and any model, with nothing started."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine_launchers import ENGINES, load_launcher
from engine_launchers.base import EngineName, EnginePlan, Launcher
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.errors import EngineRoomError, NoEngineFits
from orchestrator.models.resolve import Resolved, load_catalog
from orchestrator.planning.planner import Wish, make_plan
from orchestrator.settings import Settings
from orchestrator.tables import load_gpus, load_tiers


@dataclass(frozen=True)
class Line:
    """One model of the ranking: its plan, or why there is none."""

    name: str
    plan: EnginePlan | None
    why: str = ""


def wish_of(settings: Settings) -> Wish:
    """The settings that pin a plan."""
    return Wish(
        engine=settings.force_backend,
        max_model_len=settings.context,
        threads=settings.threads,
        quantization=settings.quantization,
        tensor_parallel=settings.tensor_parallel_size,
        gpu_memory_fraction=settings.gpu_memory_utilization,
        gpu_layers=settings.gpu_layers,
        users=settings.users,
        goal=settings.goal,
        force_cpu=settings.force_cpu,
        compile=settings.enable_compile or None,
        extra_args=settings.engine_args,
    )


def without_gpus(hardware: HardwareProfile, why: str) -> HardwareProfile:
    """The machine as one that has no GPU, with a note that says so."""
    if not hardware.gpus:
        return hardware
    note = f"{why}: {hardware.gpu_count} GPUs are not used"
    notes = (*hardware.notes, note)
    return hardware.model_copy(update={"gpus": (), "links": (), "notes": notes})


class Advisor:
    """Plans with all engines. Made once for many models: it holds the tables."""

    def __init__(self, hardware: HardwareProfile, settings: Settings) -> None:
        self.hardware = without_gpus(hardware, "force_cpu") if settings.force_cpu else hardware
        self.launchers: dict[EngineName, Launcher] = {n: load_launcher(n) for n in ENGINES}
        self._wish = wish_of(settings)
        self._tiers, self._table = load_tiers(), load_gpus()

    def plan(self, variants: Sequence[ModelSpec]) -> EnginePlan:
        """The best plan for one of these artefacts. Raises NoEngineFits with the numbers."""
        plan = make_plan(
            variants, self.hardware, self._tiers, self.launchers, self._wish, self._table
        )
        notes = list(plan.reasons)
        if plan.model.source.startswith("hf://"):
            address = plan.model.source.removeprefix("hf://")
            notes.append(f"not on this machine yet: `engineroom pull {address}` fetches it")
        return plan.model_copy(update={"reasons": tuple(notes)})

    def plan_for(self, resolved: Resolved) -> EnginePlan:
        """The plan for what a name stands for.

        Where a name pins artefacts that do not fit, the refusal says which others of the model do.
        """
        try:
            return self.plan(resolved.variants)
        except NoEngineFits as error:
            if not resolved.others:
                raise
            try:
                other = self.plan(resolved.others)
            except NoEngineFits:
                raise error from None
            raise NoEngineFits(
                f"{error.message}; {resolved.name} as {other.model.quantization} would fit "
                f"({other.id}): ask for {resolved.name}"
            ) from error

    def everything(self, names: Iterable[str] | None = None) -> list[Line]:
        """Every model of the catalog, the largest that run well first.

        "What can I run?": models that fit, by weights that one can have, then those that do not.
        """
        catalog = load_catalog()
        lines: list[Line] = []
        for name in names or catalog.names():
            try:
                lines.append(Line(name, self.plan(catalog.variants(name))))
            except EngineRoomError as error:
                lines.append(Line(name, None, error.message))
        return sorted(lines, key=_order)


def _order(line: Line) -> tuple[int, float, str]:
    if line.plan is None:
        return (2, 0.0, line.name)
    rate = line.plan.expected.tokens_per_second
    slow = bool(rate and sum(rate) / 2 < _READING_SPEED)
    return (1 if slow else 0, -float(line.plan.model.params), line.name)


_READING_SPEED = 5.0  # tokens per second: slower than people read
