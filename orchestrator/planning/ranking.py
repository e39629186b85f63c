"""Which of the plans that fit is taken, and why the others are not. Pure.

Without a goal the tier's wish decides: its engine, then the nearest precision, then the context
that is reached, then as many cards as the tier wants. Plans that keep layers in RAM come after all
that do not, unless they are faster still. A goal puts its own figure first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine_launchers.base import EngineName, Expected, Fit, Rejection
from engine_launchers.precision import bits, distance, label
from orchestrator.planning.candidates import Candidate
from orchestrator.planning.tiers import Tier

GOALS = ("throughput", "latency", "quality", "memory")
_ENGINES: tuple[EngineName, ...] = ("vllm", "llama_server", "llama_cpp", "pytorch")
# The documents' word for llama.cpp, and the servers that it means here, the better one first.
_MEANT: dict[EngineName, tuple[EngineName, ...]] = {"llama_cpp": ("llama_server", "llama_cpp")}
_FEWEST_BITS = 4  # what lies partly in RAM is chosen for speed, but not below this


@dataclass(frozen=True)
class Fitting:
    """A candidate that fits, with what it reaches."""

    candidate: Candidate
    fit: Fit
    expected: Expected
    wanted_context: int

    @property
    def quantization(self) -> str:
        """The precision that it runs in."""
        return self.candidate.packing or self.candidate.model.quantization

    @property
    def rate(self) -> float:
        """Tokens per second of one stream, 0 where nothing is known."""
        pair = self.expected.tokens_per_second
        return sum(pair) / 2 if pair else 0.0

    @property
    def batch_rate(self) -> float:
        """Tokens per second of all streams together; of one where the engine is serial."""
        return self.expected.batch_tokens_per_second or self.rate

    @property
    def held(self) -> int:
        """Bytes taken, without a cache that fills whatever is left."""
        return sum(part.total - part.kv for part in self.fit.estimate)

    @property
    def spills(self) -> bool:
        """Whether layers that belong on a GPU stay in RAM."""
        return self.fit.spilled > 0

    @property
    def context_share(self) -> float:
        """The part of the wished context that is reached, at most 1."""
        return min(1.0, (self.fit.tuning.max_model_len or 0) / max(1, self.wanted_context))


def preference(tier: Tier) -> tuple[EngineName, ...]:
    """The tier's engine first, or those that its word means."""
    first = meant(tier.backend)
    return (*first, *(engine for engine in _ENGINES if engine not in first))


def meant(backend: EngineName) -> tuple[EngineName, ...]:
    """The engines that a tier's word stands for."""
    return _MEANT.get(backend, (backend,))


def plan_id(item: Fitting) -> str:
    """`<engine>-<precision>-tp<N>[-pp<N>][-lora]`."""
    tuning, model = item.fit.tuning, item.candidate.model
    engine = item.candidate.engine.replace("_", "-")
    stages = tuning.pipeline_parallel or 1
    name = f"{engine}-{label(item.quantization, tuning.dtype)}-tp{tuning.tensor_parallel or 1}"
    return name + (f"-pp{stages}" if stages > 1 else "") + ("-lora" if model.adapters else "")


def ranked(
    items: list[Fitting], tier: Tier, wishes: tuple[str, ...], goal: str | None
) -> list[Fitting]:
    """The best first. `wishes` are the tier's precisions."""
    order = preference(tier)
    inside = max((item.rate for item in items if not item.spills), default=0.0)
    spread = tier.tensor_parallel == "all"

    def by_tier(item: Fitting) -> tuple[float, ...]:
        cards = len(item.candidate.gpus)
        nearest = min(at / 2 + distance(item.quantization, w) for at, w in enumerate(wishes))
        return (
            0 if cards or tier.gpus[0] == 0 else 1,
            item.spills and item.rate <= inside,
            max(0, _FEWEST_BITS - bits(item.quantization)) if item.spills else 0,
            order.index(item.candidate.engine),
            -item.rate if item.spills else nearest,
            -item.context_share,
            item.candidate.pipeline_parallel > 1,
            -cards if spread else cards,
            item.candidate.pipeline_parallel,
            -item.rate,
        )

    keys: dict[str | None, Callable[[Fitting], tuple[float, ...]]] = {
        None: by_tier,
        "throughput": lambda item: (-item.batch_rate * item.context_share, *by_tier(item)),
        "latency": lambda item: (-item.rate * item.context_share, *by_tier(item)),
        "quality": lambda item: (
            item.spills,
            -bits(item.quantization),
            -item.context_share,
            *by_tier(item),
        ),
        "memory": lambda item: (item.held, *by_tier(item)),
    }
    return sorted(items, key=keys[goal])


def passed_over(item: Fitting, best: Fitting, tier: Tier, goal: str | None) -> Rejection:
    """Why a plan that fits was not taken, with the figures that decided."""
    name = plan_id(item) + _place(item, best)
    if goal == "throughput":
        return _less(name, "tokens/s of all streams", item.batch_rate, best.batch_rate)
    if goal == "latency":
        return _less(name, "tokens/s", item.rate, best.rate)
    if goal == "memory":
        return Rejection(
            what=name, why=f"fits, takes {item.held / 2**30:.1f} GiB beside its cache, "
            f"{best.held / 2**30:.1f} suffice", need=item.held, have=best.held, unit="bytes",
        )  # fmt: skip
    mine, theirs = bits(item.quantization), bits(best.quantization)
    if item.candidate.engine != best.candidate.engine and goal is None:
        order = preference(tier)
        at, top = order.index(item.candidate.engine), order.index(best.candidate.engine)
        place = f"place {top + 1} of {len(order)}, not {at + 1}"
        why = f"fits, the tier prefers {best.candidate.engine} ({place})"
        return Rejection(what=name, why=why, need=at + 1, have=top + 1, unit="place")
    if mine != theirs:
        wish = "" if goal else f", the tier wishes {tier.quantization}"
        why = f"fits, {mine} bits a weight where {theirs} fit{wish}"
        return Rejection(what=name, why=why, need=mine, have=theirs, unit="bits")
    if item.context_share < best.context_share:
        length, other = item.fit.tuning.max_model_len or 0, best.fit.tuning.max_model_len or 0
        why = f"fits, context {length} where {other} fits"
        return Rejection(what=name, why=why, need=other, have=length, unit="tokens")
    cards, wanted = len(item.candidate.gpus), len(best.candidate.gpus)
    if cards != wanted:
        why = f"fits, on {cards} GPUs where {wanted} are wished"
        return Rejection(what=name, why=why, need=cards, have=wanted, unit="GPUs")
    return _less(name, "tokens/s", item.rate, best.rate)


def _place(item: Fitting, best: Fitting) -> str:
    """What an id does not tell: that it is the processor's, or partly."""
    if not item.candidate.gpus:
        return " on the CPU" if best.candidate.gpus else ""
    return " with layers in RAM" if item.spills else ""


def _less(name: str, what: str, mine: float, best: float) -> Rejection:
    return Rejection(
        what=name,
        why=f"fits, {mine:.1f} {what} expected where {best:.1f} are",
        need=mine,
        have=best,
        unit="tokens/s",
    )
