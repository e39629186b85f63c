"""What the transformers library takes, and whether that fits. Pure.

weights = bytes of the artefact; packed while loading: NF4 with double quantization 4.127 bits
          for every weight of a layer, int8 8 bits, while token table and output stay 16 bit
cache   = 16 bit, in blocks of 64 tokens of every layer (the window of sliding layers saves
          nothing: the server wants blocks for a whole context), all allocated at the start
peak    = logits of one token a sequence in 32 bit, a layer over the longest prompt, and two
          blocks that the library keeps for padding

One process drives one NVIDIA GPU: the library keeps the whole cache on the model's device.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine_launchers.base import EnginePlan, Fit, MemoryEstimate, Rejection, Tuning
from engine_launchers.caches import bytes_per_token, sequence_bytes
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.relaxing import gib

PACKED_BITS = {"NF4": 4.127, "INT8": 8.0}
MIN_CONTEXT = 512
BLOCK_TOKENS = 64  # of one KV block, told to the server as --block-size
_SHORT = 1024  # tokens that are counted for a request which need not have a full context
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


def block_bytes(model: ModelSpec) -> float:
    """Bytes of one KV block: 64 tokens in every layer, 16 bit."""
    return BLOCK_TOKENS * bytes_per_token(model)


def kv_blocks(context: int, sequences: int, full: int) -> int:
    """Blocks for `sequences` requests, `full` of them with a whole context of tokens."""
    return full * _blocks(context) + (sequences - full) * _blocks(min(context, _SHORT))


def num_blocks(plan: EnginePlan) -> int | None:
    """Blocks that the planned KV bytes hold, never fewer than one context; None: nothing planned.

    The server allocates exactly these, so the cache takes what the plan says.
    """
    each = block_bytes(plan.model)
    if not (plan.estimate and each):
        return None
    least = _blocks(plan.tuning.max_model_len or plan.model.context_max)
    return max(least, int(sum(part.kv for part in plan.estimate) // each))


def refit(plan: EnginePlan) -> EnginePlan:
    """The same plan with the cache and activations that its tuning now takes."""
    if not plan.estimate:
        return plan
    holder, *others = plan.estimate  # the device of the model: the GPU, or RAM without one
    context = plan.tuning.max_model_len or plan.model.context_max
    seqs = plan.tuning.max_concurrency or 1
    full = seqs if "max_concurrency" in plan.pinned else 1
    update = {
        "kv": int(kv_blocks(context, seqs, full) * block_bytes(plan.model)),
        "activations": int(peak(plan.model, context, seqs)),
    }
    return plan.model_copy(update={"estimate": (holder.model_copy(update=update), *others)})


def peak(model: ModelSpec, context: int, sequences: int) -> float:
    """Bytes of activations and states: prompts are computed one at a time."""
    logits = 4.0 * model.vocab * sequences
    layer = context * 2.0 * (2 * model.intermediate + 4 * model.hidden)
    states = sequences * sequence_bytes(model, 0)
    return logits + layer + states + 2 * block_bytes(model)


def fit(
    model: ModelSpec, hardware: HardwareProfile, wish: Tuning, pinned: frozenset[str]
) -> Fit | Rejection:
    """Sized for the freest GPU of the profile, with the rest of the layers in RAM."""
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
    foreign = [gpu for gpu in hardware.gpus if gpu.vendor != "nvidia"]
    if foreign:
        return _no(f"drives NVIDIA GPUs or the processor, {foreign[0].name} is {foreign[0].vendor}")
    used = _freest(hardware)
    gpu = hardware.gpus[used[0]] if used else None
    if gpu and _card(gpu) <= 0:
        return _no(
            f"takes {gib(_GPU_OVERHEAD)} of a GPU before any weight, {gib(gpu.vram_free)} of "
            f"{gpu.name} are free",
            _GPU_OVERHEAD, gpu.vram_free, "bytes",
        )  # fmt: skip
    host = hardware.ram_available * _SHARE - _HOST_OVERHEAD
    if host < 0:
        return _no(
            f"its process takes {gib(_HOST_OVERHEAD)} of RAM, {gib(hardware.ram_available)} are "
            "available",
            _HOST_OVERHEAD, hardware.ram_available, "bytes",
        )  # fmt: skip
    room = _card(gpu) if gpu else host
    if gpu and gpu.unified:  # one memory: nothing can be moved aside
        room, host = min(room, max(1.0, host - _GPU_OVERHEAD)), 0.0
    least = wanted if "max_model_len" in pinned else min(MIN_CONTEXT, wanted)
    users = seqs if "max_concurrency" in pinned else 1
    over = held.total + _working(model, least, users) - room
    offload = _offload(held, over, host if gpu and not packing else 0.0)
    if offload is None:
        need = held.total + _working(model, least, users)
        what = packing or model.quantization
        return _no(
            f"{what} needs {gib(need)}, {gib(max(0.0, room))} may be used", need, room, "bytes"
        )
    left = room - (held.total - offload)
    context = _longest(model, left, wanted, users)
    if context < least:
        return _no(
            f"{gib(max(0.0, left))} are left for the cache: {context} tokens, {least} wanted",
            least, context, "tokens",
        )  # fmt: skip
    reasons = [] if context == wanted else [f"context {context}: {wanted} tokens wished"]
    if offload:
        reasons.append(f"{gib(offload)} of the layers stay in RAM, which is slow")
    if "max_concurrency" not in pinned:
        short = _blocks(min(context, _SHORT)) * block_bytes(model)
        each = short + sequence_bytes(model, 0) + 4.0 * model.vocab
        spare = left - _working(model, context, 1)
        seqs = max(1, min(seqs, 1 + int(max(0.0, spare) // max(1.0, each))))
    old = bool(gpu and gpu.compute_capability and gpu.compute_capability < (8, 0))
    tuning = wish.model_copy(
        update={
            "max_model_len": context,
            "max_concurrency": seqs,
            "quantization": packing or model.quantization,
            "dtype": _dtype(model, wish, old),
            "cpu_offload_bytes": int(offload) or None,
            "threads": None if gpu else wish.threads or hardware.cpu_cores,
            "gpu_memory_fraction": None,
            "gpu_layers": None,
            "tensor_parallel": None,
            "pipeline_parallel": None,
            "flash_attention": None,
        }
    )
    kv = kv_blocks(context, seqs, users) * block_bytes(model)
    estimate = _estimate(hardware, gpu, held, offload, kv, peak(model, context, seqs))
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


def _freest(hardware: HardwareProfile) -> tuple[int, ...]:
    """The place of the GPU with most free memory, the first of equals; none without GPUs."""
    places = range(len(hardware.gpus))
    best = max(places, key=lambda at: (hardware.gpus[at].vram_free, -at), default=None)
    return () if best is None else (best,)


def _blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def _working(model: ModelSpec, context: int, users: int) -> float:
    """Bytes beside the weights: `users` caches of `context`, and activations."""
    return users * _blocks(context) * block_bytes(model) + peak(model, context, users)


def _longest(model: ModelSpec, room: float, limit: int, users: int) -> int:
    """Tokens, at most `limit`, that each of `users` can have in `room` bytes."""
    if _working(model, limit, users) <= room:
        return limit
    low, high = 0, limit - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = _working(model, middle, users) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _offload(held: Weights, over: float, host: float) -> float | None:
    """Bytes of layers that have to stay in RAM, `host` at most; None where that does not help."""
    if over <= 0:
        return 0.0
    return over if over <= min(held.layers, host) else None


def _estimate(
    hardware: HardwareProfile, gpu: Gpu | None, held: Weights, offload: float, kv: float, top: float
) -> tuple[MemoryEstimate, ...]:
    """`kv` and `top` are bytes of the cache and of activations, on the GPU where there is one."""
    ram = {"capacity": hardware.ram_total, "others": hardware.ram_total - hardware.ram_available}
    if gpu is None:
        return (
            MemoryEstimate(
                device="ram", weights=int(held.total), kv=int(kv), activations=int(top),
                overhead=int(_HOST_OVERHEAD), **ram,
            ),
        )  # fmt: skip
    card = MemoryEstimate(
        device=f"gpu:{gpu.index}",
        weights=int(held.total - offload),
        kv=int(kv),
        activations=int(top),
        overhead=int(_GPU_OVERHEAD),
        capacity=gpu.vram_total,
        others=gpu.vram_total - gpu.vram_free,
    )
    host = MemoryEstimate(
        device="ram", weights=int(offload), kv=0, activations=0, overhead=int(_HOST_OVERHEAD), **ram
    )
    return (card, host)


def _no(
    why: str, need: float | None = None, have: float | None = None, unit: str | None = None
) -> Rejection:
    return Rejection(what="pytorch", why=why, need=need, have=have, unit=unit)
