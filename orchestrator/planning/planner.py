"""From hardware, variants and wishes to one EnginePlan with its reasons. Pure.

Candidates (engine x variant x cards) are put to the engines; what fits is ranked by the goal; what
does not keeps its number. The tier is the wish, the memory model decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine_launchers.base import (
    CrashCause,
    EngineName,
    EnginePlan,
    Expected,
    Fit,
    Launcher,
    Rejection,
)
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.precision import bits, satisfies
from engine_launchers.relaxing import ladder
from orchestrator.errors import NoEngineFits
from orchestrator.planning.candidates import Candidate, Wish, candidates
from orchestrator.planning.gpus import GpuSpec, GpuTable
from orchestrator.planning.pins import keeping
from orchestrator.planning.ranking import Fitting, meant, passed_over, plan_id, preference, ranked
from orchestrator.planning.speed import expect
from orchestrator.planning.tiers import Tier, choose_tier

__all__ = ["Wish", "fingerprint", "make_plan"]

_OF_SIZE = frozenset({"bytes"})  # the weights alone: no other split of the same cards holds them
_NEXT = 2  # other plans that the ladder names after its rungs


def fingerprint(wish: Wish, plan: EnginePlan, changed_ns: int) -> str:
    """Names this wish for this very model, its names and adapters, and the engine's version.

    What the machine had free when a plan was made is no part of it: an engine that runs takes
    memory that the next plan does not find.
    """
    model = plan.model
    names = (plan.aliases, model.adapters, plan.engine_version, plan.runtime, plan.image)
    parts = (wish.model_dump_json(), model.source, model.weight_bytes, *names, changed_ns)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def make_plan(
    variants: Sequence[ModelSpec],
    hardware: HardwareProfile,
    tiers: tuple[Tier, ...],
    launchers: Mapping[EngineName, Launcher],
    wish: Wish,
    table: GpuTable | None = None,
    absent: Mapping[EngineName, str] | None = None,
    blind: frozenset[EngineName] = frozenset(),
) -> EnginePlan:
    """The best plan for one of `variants` of a model, every refusal kept.

    `absent` says of engines that are not in `launchers` why they cannot be had; those in `blind`
    were built without the code for this machine's GPUs. Raises NoEngineFits with all reasons.
    """
    tier = choose_tier(tiers, hardware)
    _refuse_impossible(variants, wish)
    order = (wish.engine,) if wish.engine else preference(tier)
    rejected = [
        Rejection(what=engine, why=(absent or {}).get(engine, "not one of those to choose from"))
        for engine in order
        if engine not in launchers
    ]
    able = {engine: launchers[engine] for engine in order if engine in launchers}
    rejected += [
        _without_format(launcher, variants)
        for launcher in able.values()
        if not any(m.format in launcher.formats for m in variants)
    ]
    unwanted = [m for m in variants if not satisfies(m.quantization, wish.quantization)]
    rejected += [
        Rejection(
            what=m.quantization,
            why=f"{bits(m.quantization)} bits a weight, quantization {wish.quantization} was asked",
            need=bits(m.quantization),
            unit="bits",
        )
        for m in unwanted
    ]
    known = {gpu.uuid: table.of(gpu) if table else None for gpu in hardware.gpus}
    fitting: list[Fitting] = []
    for each in candidates(variants, hardware, able, wish, blind):
        for candidate in each:
            found = _ask(candidate, hardware, tier, wish, able[candidate.engine], known)
            if isinstance(found, Fitting):
                fitting.append(found)
                break
            rejected.append(found)
            if found.unit in _OF_SIZE:
                break
    if not fitting:
        raise NoEngineFits(_sentence(variants, hardware, wish, rejected))
    wishes = _wishes(tier, hardware, variants[0])
    chosen, *others = ranked(fitting, tier, wishes, wish.goal)
    losers = _one_each(chosen, others)
    rejected = list(dict.fromkeys(rejected))
    rejected += [passed_over(item, chosen, tier, wish.goal) for item in losers]
    return _plan(
        chosen,
        losers,
        launchers[chosen.candidate.engine],
        tier,
        wish,
        hardware,
        rejected,
        wishes[0],
    )


def _refuse_impossible(variants: Sequence[ModelSpec], wish: Wish) -> None:
    """What no machine could do is said once, not for every candidate."""
    longest = max((model.context_max for model in variants), default=0)
    if variants and wish.max_model_len and wish.max_model_len > longest:
        raise NoEngineFits(
            f"context {wish.max_model_len} was asked for, {variants[0].id} was made for {longest} "
            f"tokens: ask for {longest} or less"
        )


def _ask(
    candidate: Candidate,
    hardware: HardwareProfile,
    tier: Tier,
    wish: Wish,
    launcher: Launcher,
    known: Mapping[str, GpuSpec | None],
) -> Fitting | Rejection:
    part = hardware.model_copy(update={"gpus": candidate.gpus})
    tuning = candidate.tuning(tier, wish)
    fit = launcher.fit(candidate.model, part, tuning, wish.pinned() - {"quantization"})
    if isinstance(fit, Fit):
        fit = keeping(fit, wish, candidate.engine)
    if isinstance(fit, Rejection):
        return fit.model_copy(update={"what": _name(candidate)})
    if len(fit.gpus) < len(candidate.gpus):
        candidate = replace(candidate, gpus=tuple(candidate.gpus[at] for at in fit.gpus))
        part = hardware.model_copy(update={"gpus": candidate.gpus})
    expected = expect(
        candidate.model, fit.tuning, fit.estimate, part, known, launcher.speed, fit.spilled
    )
    return Fitting(candidate, fit, expected, tuning.max_model_len or 0)


def _without_format(launcher: Launcher, variants: Sequence[ModelSpec]) -> Rejection:
    wanted, have = " or ".join(launcher.formats), {m.format for m in variants}
    if any(m.adapters for m in variants):
        why = f"reads {wanted}; the adapter goes with a model of safetensors"
        return Rejection(what=launcher.name, why=why)
    return Rejection(
        what=launcher.name, why=f"reads {wanted}, the model is known as {' and '.join(have)} only"
    )


def _name(candidate: Candidate) -> str:
    """Names a candidate that has no plan yet."""
    precision = candidate.packing or candidate.model.quantization
    words = [candidate.engine, precision]
    if candidate.tensor_parallel > 1:
        words.append(f"tp{candidate.tensor_parallel}")
    if candidate.pipeline_parallel > 1:
        words.append(f"pp{candidate.pipeline_parallel}")
    if candidate.gpus:
        words.append(f"on {len(candidate.gpus)} GPU" + ("s" if len(candidate.gpus) > 1 else ""))
    else:
        words.append("on the CPU")
    return " ".join(words)


def _one_each(chosen: Fitting, others: list[Fitting]) -> list[Fitting]:
    """The best of every plan id that is not the chosen one's."""
    seen = {plan_id(chosen)}
    kept: list[Fitting] = []
    for item in others:
        if plan_id(item) not in seen:
            seen.add(plan_id(item))
            kept.append(item)
    return kept


def _plan(
    chosen: Fitting,
    losers: list[Fitting],
    launcher: Launcher,
    tier: Tier,
    wish: Wish,
    hardware: HardwareProfile,
    rejected: list[Rejection],
    own: str,
) -> EnginePlan:
    model, tuning = chosen.candidate.model, chosen.fit.tuning
    plan = EnginePlan(
        id=plan_id(chosen),
        engine=launcher.name,
        engine_version=launcher.version,
        tier=tier.name,
        model=model,
        tuning=tuning,
        pinned=wish.pinned(),
        gpus=tuple(gpu.index for gpu in chosen.candidate.gpus),
        visible=_visible(chosen.candidate.gpus),
        estimate=chosen.fit.estimate,
        expected=chosen.expected,
        guide=_guide(tier),
        reasons=(*_reasons(chosen, tier, wish, hardware, own), *chosen.fit.reasons),
        rejected=tuple(rejected),
    )
    cause = CrashCause.GPU_OOM if plan.gpus else CrashCause.HOST_OOM
    steps = ladder(plan, launcher.relax, cause)
    after = tuple(f"then {plan_id(item)}" for item in losers[:_NEXT])
    return plan.model_copy(update={"ladder": (*steps, *after)})


def _reasons(
    chosen: Fitting, tier: Tier, wish: Wish, hardware: HardwareProfile, own: str
) -> tuple[str, ...]:
    told = [f"tier {tier.name}: {_describe(hardware)}"]
    wished = "/".join(tier.quantizations(hardware))
    if wish.engine:
        told.append(f"engine {wish.engine} was asked for")
    elif chosen.candidate.engine not in meant(tier.backend):
        told.append(f"the tier wishes {tier.backend}: the rejected plans say why not")
    if wish.goal:
        told.append(f"goal {wish.goal}: ranked by it among all plans that fit")
    have, wanted = bits(chosen.quantization), bits(tier.quantization)
    if chosen.quantization == own and have < wanted and not wish.goal:
        told.append(f"precision {own}: the model's own, more bits would add nothing")
    elif have != wanted and not wish.goal:
        step = "down" if have < wanted else "up"
        told.append(f"precision {chosen.quantization}: a step {step} from the tier's {wished}")
    elif not wish.goal:
        told.append(f"precision {chosen.quantization}: the tier wishes {wished}")
    replicas = chosen.fit.tuning.replicas or 1
    if replicas > 1:
        told.append(f"{replicas} replicas: one engine needs {len(chosen.candidate.gpus)} GPU")
    stages = chosen.candidate.pipeline_parallel
    if stages > 1:
        told.append(f"pipeline parallel {stages}: the cards hold it in stages only")
    return tuple(told)


def _wishes(tier: Tier, hardware: HardwareProfile, original: ModelSpec) -> tuple[str, ...]:
    """The precisions to be near to: the tier's, or a model's own where it was made in fewer bits.

    The first variant is the original: what was trained in MXFP4 or FP8 gains nothing from 16 bits.
    """
    wished = tier.quantizations(hardware)
    own = original.quantization
    coarse = original.format == "safetensors" and bits(own) < min(bits(w) for w in wished)
    return (own, *wished) if coarse else wished


def _visible(gpus: Sequence[Gpu]) -> dict[str, str]:
    """The variable that restricts an engine to its cards; uuids where the driver gives them."""
    if not gpus or gpus[0].vendor in {"apple", "intel"}:
        return {}
    if gpus[0].vendor == "amd":
        return {"HIP_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in gpus)}
    named = all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in gpus)
    order = {} if named else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    cards = ",".join(gpu.uuid if named else str(gpu.index) for gpu in gpus)
    return {**order, "CUDA_VISIBLE_DEVICES": cards}


def _guide(tier: Tier) -> Expected | None:
    """The documents' table for the tier, beside our own figures."""
    speed = tier.expected
    if speed is None:
        return None
    return Expected(
        tokens_per_second=speed.tokens_per_second,
        batch_tokens_per_second=speed.batch_tokens_per_second,
        ttft_seconds=(speed.ttft_ms[0] / 1000, speed.ttft_ms[1] / 1000),
        source=f"the hosting guide's table: {speed.model or 'a 7B model'}; not measured here",
    )


def _describe(hardware: HardwareProfile) -> str:
    if not hardware.gpus:
        return "no GPU detected"
    names = ", ".join(f"{gpu.name} {gpu.vram_total / 2**30:.0f} GiB" for gpu in hardware.gpus)
    return f"{len(hardware.gpus)} GPU: {names}"


def _sentence(
    variants: Sequence[ModelSpec],
    hardware: HardwareProfile,
    wish: Wish,
    rejected: Sequence[Rejection],
) -> str:
    """One sentence for people: the refusals, the nearest of each engine and variant."""
    model = variants[0].id if variants else "the model"
    if not variants:
        return "no variant of the model can be used: an adapter needs one of safetensors"
    nearest: dict[str, Rejection] = {}
    for item in rejected:
        name = " ".join(item.what.split()[:2])
        held = nearest.get(name)
        if held is None or _short(item) < _short(held):
            nearest[name] = item
    alike: dict[str, list[str]] = {}
    for item in nearest.values():
        alike.setdefault(item.why, []).append(item.what)
    told = "; ".join(f"{_first(names)}: {why}" for why, names in alike.items())
    parallel = f", tensor parallel {wish.tensor_parallel} of {hardware.gpu_count} GPUs asked"
    return (
        f"no engine can run {model} here{parallel if wish.tensor_parallel else ''}: "
        f"{told or 'no plan can be made of these wishes'}"
    )


def _first(names: Sequence[str]) -> str:
    """Names that share a reason: two, or the first and how many more there are."""
    if len(names) < 3:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} more"


def _short(item: Rejection) -> float:
    """How far a refusal was from fitting, as a share; refusals without numbers come first."""
    if item.need is None or item.have is None or not item.have:
        return 0.0 if item.need is None else float("inf")
    return item.need / item.have
