"""Every plan worth asking an engine about: variant, cards, and how they work together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engine_launchers.base import EngineName, Launcher, Tuning
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.precision import WORDS, satisfies
from engine_launchers.value import Value
from orchestrator.planning.tiers import Tier, nominal_gb

_MAX_RANKS = 64
_SLOTS = 4  # the fourth stream on two cores still adds; each has a context of its own


class Wish(Value):
    """What a person set; None means: choose. Whatever is set here is pinned.

    `goal` chooses among plans that fit, None takes the tier's wish. `users` is how many requests
    with a full context must fit at the same time. `force_cpu` tells this wish from one with GPUs;
    the caller gives a machine without them.
    """

    engine: EngineName | None = None
    max_model_len: int | None = None
    threads: int | None = None
    quantization: str | None = None
    tensor_parallel: int | None = None
    gpu_memory_fraction: float | None = None
    gpu_layers: int | None = None
    users: int | None = None
    goal: str | None = None
    force_cpu: bool = False
    compile: bool | None = None
    extra_args: tuple[str, ...] = ()

    def pinned(self) -> frozenset[str]:
        """Names of the tuning fields that must not be changed."""
        fields = ("max_model_len", "threads", "tensor_parallel", "gpu_memory_fraction",
                  "gpu_layers", "quantization")  # fmt: skip
        chosen = {name for name in fields if getattr(self, name) is not None}
        return frozenset(chosen | ({"max_concurrency"} if self.users else set()))


@dataclass(frozen=True)
class Candidate:
    """One question to an engine. `gpus` are the cards, in order; none means the processor."""

    engine: EngineName
    model: ModelSpec
    gpus: tuple[Gpu, ...] = ()
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    replicas: int = 1
    packing: str | None = None

    @property
    def _slots(self) -> int:
        """Requests at a time that are wished whatever the tier says.

        The documents' tiers of llama.cpp say 1, which is all that its Python server can.
        """
        return _SLOTS if self.engine == "llama_server" else 1

    def tuning(self, tier: Tier, wish: Wish) -> Tuning:
        """The tier's wish for it, with what a person set."""
        splits = self.engine == "vllm"
        return Tuning(
            max_model_len=wish.max_model_len or min(tier.max_context, self.model.context_max),
            max_concurrency=wish.users or max(tier.max_batch, self._slots),
            gpu_memory_fraction=wish.gpu_memory_fraction or tier.gpu_memory_utilization,
            gpu_layers=wish.gpu_layers,
            flash_attention=True if self.gpus else None,
            tensor_parallel=self.tensor_parallel if splits else wish.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel if splits else None,
            replicas=self.replicas if self.replicas > 1 else None,
            dtype=_dtype(tier, self.model),
            quantization=self.packing or self.model.quantization,
            threads=wish.threads,
            lora_rank=max((each.rank for each in self.model.adapters), default=None),
            compile=wish.compile,
            extra_args=wish.extra_args,
        )


def _dtype(tier: Tier, model: ModelSpec) -> str | None:
    """The tier says FP16 or BF16 for 16-bit artefacts; others keep what they were made for."""
    if model.format != "safetensors" or model.dtype == "float32":
        return None
    if model.quantization in {"BF16", "FP16"}:
        return {"FP16": "float16", "BF16": "bfloat16"}.get(tier.quantization)
    return None


def candidates(
    variants: Sequence[ModelSpec],
    hardware: HardwareProfile,
    launchers: Mapping[EngineName, Launcher],
    wish: Wish,
    blind: frozenset[EngineName] = frozenset(),
) -> Iterator[tuple[Candidate, ...]]:
    """All of them, in no particular order, in sets of which the first that fits is enough.

    Engines in `blind` see no GPUs.
    """
    everything = hardware
    for engine, launcher in launchers.items():
        hidden = {"gpus": (), "links": ()} if engine in blind else {}
        hardware = everything.model_copy(update=hidden)
        groups = card_groups(hardware)
        for model in variants:
            if model.format not in launcher.formats:
                continue
            for packing in _packings(engine, model, wish):
                base = Candidate(engine, model, packing=packing)
                if launcher.speed.splits_layers:
                    yield from _parallel(base, groups, wish)
                else:
                    yield from _spread(base, hardware)


def card_groups(hardware: HardwareProfile) -> list[tuple[Gpu, ...]]:
    """Cards that can work as ranks of one engine: one kind and size; the freest first."""
    kinds: dict[tuple[str, float, str], list[Gpu]] = {}
    for gpu in hardware.gpus:
        alone = gpu.uuid if gpu.mig else ""  # a process sees one MIG slice at a time
        kinds.setdefault((gpu.name, nominal_gb(gpu.vram_total), alone), []).append(gpu)
    return [tuple(sorted(kind, key=lambda gpu: -gpu.vram_free)) for kind in kinds.values()]


def _packings(engine: EngineName, model: ModelSpec, wish: Wish) -> tuple[str | None, ...]:
    """How a 16-bit artefact may be packed while it is loaded: the pytorch engine can."""
    plain = (None,) if satisfies(model.quantization, wish.quantization) else ()
    if engine != "pytorch" or not satisfies(model.quantization, "none"):
        return plain
    wanted = {"4bit": ("NF4",), "8bit": ("INT8",), "none": ()}
    if wish.quantization in WORDS:
        return (*plain, *wanted[wish.quantization])
    return (*plain, "INT8", "NF4")


def _parallel(
    base: Candidate, groups: list[tuple[Gpu, ...]], wish: Wish
) -> Iterator[tuple[Candidate, ...]]:
    """Tensor parallel over all cards of a set; where that does not divide, stages of fewer."""
    if not groups:  # workers on the processor, as many as were asked for
        yield (replace(base, tensor_parallel=wish.tensor_parallel or 1),)
        return
    for group in groups:
        for used in _counts(len(group), wish.tensor_parallel):
            cards = tuple(sorted(group[:used], key=lambda gpu: gpu.index))
            splits = tuple(
                replace(base, gpus=cards, tensor_parallel=ranks, pipeline_parallel=used // ranks)
                for ranks in _divisors(used)
                if wish.tensor_parallel in (None, ranks)
            )
            yield splits
            copies = len(group) // used
            if copies > 1 and wish.goal == "throughput":
                yield tuple(replace(one, replicas=copies) for one in splits)


def _counts(cards: int, ranks: int | None) -> list[int]:
    """How many cards of a group to try: all, and every power of two below; or what is pinned."""
    if ranks is not None:
        return [ranks] if ranks <= cards else []
    powers = {1 << n for n in range(cards.bit_length()) if 1 << n <= cards}
    return sorted(powers | {cards}, reverse=True)


def _divisors(number: int) -> list[int]:
    return [n for n in range(min(number, _MAX_RANKS), 0, -1) if number % n == 0]


def _spread(base: Candidate, hardware: HardwareProfile) -> Iterator[tuple[Candidate, ...]]:
    """All cards of one maker together, the best one alone, and none at all.

    A process drives one maker's cards, and sees one MIG slice at a time.
    """
    for vendor in dict.fromkeys(gpu.vendor for gpu in hardware.gpus):
        cards = tuple(gpu for gpu in hardware.gpus if gpu.vendor == vendor)
        if len(cards) > 1 and not any(gpu.mig for gpu in cards):
            yield (replace(base, gpus=cards),)
        best = max(cards, key=lambda gpu: (gpu.vram_free, -gpu.index))
        yield (replace(base, gpus=(best,)),)
    yield (base,)
