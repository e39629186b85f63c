"""What the transformers library takes, and whether that fits. Pure.

weights = bytes of the artefact; packed while loading: NF4 with double quantization 4.127 bits
          for every weight of a layer, int8 8 bits, while token table and output stay 16 bit
cache   = 16 bit, every layer, every token (sliding layers keep their window)
peak    = logits of one token a sequence in 32 bit, and a layer over the longest prompt
"""

from __future__ import annotations

from dataclasses import dataclass

from engine_launchers.base import Fit, MemoryEstimate, Rejection, Tuning
from engine_launchers.caches import sequence_bytes
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.relaxing import gib

PACKED_BITS = {"NF4": 4.127, "INT8": 8.0}
MIN_CONTEXT = 512
_SIXTEEN = frozenset({"BF16", "FP16", "FP32"})
_GPU_OVERHEAD = 0.75 * 2**30  # CUDA context, cuBLAS, allocator slack
_HOST_OVERHEAD = 0.45 * 2**30  # the server's process, measured
_SHARE = 0.95


@dataclass(frozen=True)
class Weights:
    """Bytes of the layers, and of what is never packed: token table, output, norms."""

    layers: float
    rest: float

    @property
    def total(self) -> float:
        """Both."""
        return self.layers + self.rest


def weights(model: ModelSpec, packing: str | None) -> Weights:
    """Bytes in memory of a 16 or 32 bit artefact, packed or not."""
    parts = model.weights
    if model.quantization == "NF4":
        return Weights(0.0, float(model.weight_bytes))  # packed already, nothing to offload
    layers = float(sum(parts.layers)) if parts else model.weight_bytes * 0.9
    rest = model.weight_bytes - layers
    if model.quantization == "FP32":
        layers, rest = layers / 2, rest / 2
    bits = PACKED_BITS.get(packing or "")
    return Weights(layers * bits / 16 if bits else layers, rest)


def peak(model: ModelSpec, context: int, sequences: int) -> float:
    """Bytes of activations: prompts are computed one at a time."""
    logits = 4.0 * model.vocab * sequences
    layer = context * 2.0 * (2 * model.intermediate + 4 * model.hidden)
    return logits + layer


def fit(
    model: ModelSpec, hardware: HardwareProfile, wish: Tuning, pinned: frozenset[str]
) -> Fit | Rejection:
    """Sized for all GPUs of the profile, with the rest of the layers in RAM."""
    if model.format != "safetensors":
        return _no(f"reads safetensors, this is {model.format}; llama_cpp reads it")
    if model.quantization not in _SIXTEEN and model.quantization != "NF4":
        return _no(f"{model.quantization} needs kernels of another engine: vllm")
    packing = wish.quantization if wish.quantization in PACKED_BITS else None
    asked = wish.max_model_len
    if asked and asked > model.context_max and "max_model_len" in pinned:
        return _no(
            f"context {asked} was asked for, the model has {model.context_max}",
            asked, model.context_max, "tokens",
        )  # fmt: skip
    wanted = min(asked or model.context_max, model.context_max)
    held = weights(model, packing)
    seqs = wish.max_concurrency or 1
    used = tuple(at for at, gpu in enumerate(hardware.gpus) if _card(gpu) > 0)
    if hardware.gpus and not used:
        freest = max(hardware.gpus, key=lambda gpu: gpu.vram_free)
        return _no(
            f"takes {gib(_GPU_OVERHEAD)} of a GPU before any weight, {gib(freest.vram_free)} of "
            f"{freest.name} are free",
            _GPU_OVERHEAD, freest.vram_free, "bytes",
        )  # fmt: skip
    hardware = hardware.model_copy(update={"gpus": tuple(hardware.gpus[at] for at in used)})
    cards = [_card(gpu) for gpu in hardware.gpus]
    host = hardware.ram_available * _SHARE - _HOST_OVERHEAD
    if host < 0:
        return _no(
            f"its process takes {gib(_HOST_OVERHEAD)} of RAM, {gib(hardware.ram_available)} are "
            "available",
            _HOST_OVERHEAD, hardware.ram_available, "bytes",
        )  # fmt: skip
    if any(gpu.unified for gpu in hardware.gpus):  # one memory: nothing can be moved aside
        cards = [min(card, max(1.0, host - _GPU_OVERHEAD)) for card in cards]
        host = 0.0
    room = sum(cards) if cards else host
    least = wanted if "max_model_len" in pinned else min(MIN_CONTEXT, wanted)
    users = seqs if "max_concurrency" in pinned else 1
    places = max(1, len(cards))  # a prompt passes through every card
    offload = _offload(model, held, room, host, least, users, len(cards), packing)
    if offload is None:
        need = held.total + _working(model, least, users, places)
        what = packing or model.quantization
        return _no(
            f"{what} needs {gib(need)}, {gib(max(0.0, room))} may be used", need, room, "bytes"
        )
    left = room - (held.total - offload)
    context = _longest(model, left, wanted, users, places)
    if context < least:
        return _no(
            f"{gib(max(0.0, left))} are left for the cache: {context} tokens, {least} wanted",
            least, context, "tokens",
        )  # fmt: skip
    reasons = [] if context == wanted else [f"context {context}: {wanted} tokens wished"]
    if offload:
        reasons.append(f"{gib(offload)} of the layers stay in RAM, which is slow")
    if "max_concurrency" not in pinned:
        each = sequence_bytes(model, min(context, 1024)) + 4.0 * model.vocab * places
        spare = left - _working(model, context, 1, places)
        seqs = max(1, min(seqs, 1 + int(max(0.0, spare) // max(1.0, each))))
    old = any(g.compute_capability and g.compute_capability < (8, 0) for g in hardware.gpus)
    tuning = wish.model_copy(
        update={
            "max_model_len": context,
            "max_concurrency": seqs,
            "quantization": packing or model.quantization,
            "dtype": _dtype(model, wish, old),
            "cpu_offload_bytes": int(offload) or None,
            "threads": None if cards else wish.threads or hardware.cpu_cores,
            "gpu_memory_fraction": None,
            "gpu_layers": None,
            "tensor_parallel": None,
            "pipeline_parallel": None,
            "flash_attention": None,
        }
    )
    estimate = _estimate(model, hardware, held, offload, context, (seqs, users), cards)
    return Fit(
        tuning=tuning,
        gpus=used,
        spilled=int(offload),
        estimate=estimate,
        reasons=tuple(reasons),
    )


def _dtype(model: ModelSpec, wish: Tuning, old: bool) -> str:
    """16 bit always: BF16 only from compute capability 8.0."""
    wanted = wish.dtype or model.dtype
    return "float16" if old else "bfloat16" if wanted == "float32" else wanted


def _card(gpu: Gpu) -> float:
    """Bytes of a card for weights, cache and activations."""
    return gpu.vram_free * _SHARE - _GPU_OVERHEAD


def _working(model: ModelSpec, context: int, users: int, places: int) -> float:
    """Bytes beside the weights: `users` caches of `context`, activations on each of `places`."""
    return users * sequence_bytes(model, context) + places * peak(model, context, users)


def _longest(model: ModelSpec, room: float, limit: int, users: int, places: int) -> int:
    """Tokens, at most `limit`, that each of `users` can have in `room` bytes."""
    if _working(model, limit, users, places) <= room:
        return limit
    low, high = 0, limit - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = _working(model, middle, users, places) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _offload(
    model: ModelSpec,
    held: Weights,
    room: float,
    host: float,
    least: int,
    users: int,
    cards: int,
    packing: str | None,
) -> float | None:
    """Bytes of layers that have to stay in RAM; None where that does not help."""
    over = held.total + _working(model, least, users, max(1, cards)) - room
    if over <= 0:
        return 0.0
    if not cards or packing or over > held.layers or over > host:
        return None
    return over


def _estimate(
    model: ModelSpec,
    hardware: HardwareProfile,
    held: Weights,
    offload: float,
    context: int,
    requests: tuple[int, int],
    cards: list[float],
) -> tuple[MemoryEstimate, ...]:
    """`requests` are all that run at once, and how many of them have a full context."""
    seqs, full = requests
    short = sequence_bytes(model, min(context, 1024))
    kv = full * sequence_bytes(model, context) + (seqs - full) * short
    top = peak(model, context, seqs)
    ram = {"capacity": hardware.ram_total, "others": hardware.ram_total - hardware.ram_available}
    if not cards:
        return (
            MemoryEstimate(
                device="ram", weights=int(held.total), kv=int(kv), activations=int(top),
                overhead=int(_HOST_OVERHEAD), **ram,
            ),
        )  # fmt: skip
    beside = [max(0.0, card - top) for card in cards]
    share = [each / sum(beside) if sum(beside) else 0.0 for each in beside]
    on_gpu = held.total - offload
    devices = tuple(
        MemoryEstimate(
            device=f"gpu:{gpu.index}",
            weights=int(on_gpu * part),
            kv=int(kv * part),
            activations=int(top if part else 0),
            overhead=int(_GPU_OVERHEAD),
            capacity=gpu.vram_total,
            others=gpu.vram_total - gpu.vram_free,
        )
        for gpu, part in zip(hardware.gpus, share, strict=True)
    )
    host = MemoryEstimate(
        device="ram", weights=int(offload), kv=0, activations=0, overhead=int(_HOST_OVERHEAD), **ram
    )
    return (*devices, host)


def _no(
    why: str, need: float | None = None, have: float | None = None, unit: str | None = None
) -> Rejection:
    return Rejection(what="pytorch", why=why, need=need, have=have, unit=unit)
