"""What llama.cpp takes from each device: model, KV and compute buffers.

    KV       = per layer, on the device of the layer, for the whole context
    model    = tensors of the offloaded layers; the token table stays on the host
    compute  = the widest point of the graph x n_ubatch x 4 bytes: attention scores without flash
               attention, a layer's feed-forward, or the vocabulary's logits

Every term is checked against buffers printed by llama.cpp on CUDA, Metal, ROCm and CPU
(`bench/planner`). Which layer goes where follows its rule for equal shares: the last `ngl`
layers are offloaded, layer i of n + 1 (the output layer counts) to the card whose share i falls in.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine_launchers.caches import layer_bytes_per_token
from engine_launchers.llama_layout import (
    MIB,
    NATIVE,
    PYTHON,
    UBATCH,
    Layout,
    Run,
    Server,
    layer_groups,
    placement,
    segments,
    weight_parts,
)
from engine_launchers.model import CacheGroup, ModelSpec

__all__ = [
    "NATIVE", "PYTHON", "UBATCH", "Buffers", "Layout", "Run", "Server", "buffers", "cells",
    "compute_buffer", "device_overhead", "host_overhead", "laid_out", "layer_cache",
    "layer_groups", "placement", "spilled", "visible_total", "weight_parts",
]  # fmt: skip

_F32 = 4
_Q8_K = 292 / 256  # bytes per element of what is multiplied with quantized weights
CUDA_CONTEXT = 500 * MIB  # beside the buffers of a card: context, cuBLAS
_FUSED_QKV = frozenset({"phi2", "phi3", "PhiForCausalLM", "Phi3ForCausalLM", "gptneox", "falcon"})
_ALIGN = 256  # llama.cpp pads every sequence's cache to this many cells


def cells(context: int) -> int:
    """What a sequence of `context` tokens takes of the cache."""
    return -(-context // _ALIGN) * _ALIGN


def visible_total(reported: float) -> float:
    """What a program sees of a card for which nvidia-smi prints `reported` bytes."""
    return reported * 0.98


@dataclass(frozen=True)
class Buffers:
    """Bytes on one device.

    `compute` is what is reserved, as llama.cpp prints it; `idle` is the part of it in RAM that is
    never written, so that no page of it exists: logits of all tokens of a batch, where only the
    last one's are wanted.
    """

    weights: float
    kv: float
    compute: float
    idle: float = 0.0

    @property
    def total(self) -> float:
        """What is taken."""
        return self.weights + self.kv + self.compute - self.idle


def layer_cache(group: CacheGroup, run: Run) -> float:
    """Bytes that one layer of `group` caches for the whole run."""
    if group.kind == "state":
        return float(group.state_bytes * run.sequences)
    kept = run.context
    if group.kind == "sliding" and group.window:
        kept = min(kept, cells(group.window + run.ubatch) * run.sequences)
    return kept * layer_bytes_per_token(group, run.kv_dtype)


def compute_buffer(
    model: ModelSpec, run: Run, pipelined: bool = False, logits: bool = True
) -> float:
    """Bytes of one device's compute buffer.

    `pipelined`: several cards take turns, so that inputs are kept four times (checked: 560 MiB
    becomes 640 on each of 2, 4, 6 and 8 cards). `logits` False leaves those of a whole batch out:
    the space is reserved, but only one row is computed.
    """
    step = min(run.ubatch, run.context)
    hidden = model.hidden or model.heads * model.head_dim
    context = run.context / max(1, run.sequences)
    mask = context
    fused = 2 * hidden if model.architecture in _FUSED_QKV else 0
    scores = 0.0 if run.flash_attention else model.heads * context + mask
    attention = scores + 4 * hidden + fused
    used = model.experts_used or 1
    feed_forward = 2 * used * model.intermediate + 2 * hidden + mask
    output = float(model.vocab + hidden) if logits else 0.0
    if run.server.last_rows:
        # Up, gate and their product, beside the residual; a gate of two hidden sizes at most fits
        # into the place that attention has left.
        reused = 3 if model.intermediate <= 2 * hidden else 4
        seen = mask / 2 if run.flash_attention else mask  # a mask of 16 bit is enough then
        feed_forward = 3 * used * model.intermediate + reused * hidden + seen
        output = model.vocab * run.sequences / step
    widest = max(attention, feed_forward, output)
    if pipelined:
        widest += 3 * mask + 4 * hidden
    return widest * step * _F32


def buffers(model: ModelSpec, run: Run) -> tuple[Buffers, tuple[Buffers, ...]]:
    """(host, one per device). Unused devices hold nothing."""
    return laid_out(Layout.of(model), run)


def laid_out(layout: Layout, run: Run) -> tuple[Buffers, tuple[Buffers, ...]]:
    """(host, one per device) of a model that was taken apart before."""
    model, parts = layout.model, layout.parts
    last = len(parts.layers)
    cached = [layer_cache(group, run) for group in layout.groups]
    weights = [0.0] * (run.devices + 1)
    kv = [0.0] * (run.devices + 1)
    used: list[int] = []
    output = -1
    for device, start, end in segments(last, run):
        if start == end:
            continue
        if device >= 0:
            used.append(device)
        if end > last:
            output = device
        end = min(end, last)
        weights[device] += layout.upto[end] - layout.upto[start]
        kv[device] += sum(
            each * (count[end] - count[start])
            for each, count in zip(cached, layout.counts, strict=True)
        )
    # A tied table is used twice: the host looks tokens up, the device of the output layer owns a
    # copy for the logits.
    weights[-1] += parts.embedding
    weights[output] += parts.output + parts.other
    if parts.output == 0 and output >= 0:
        weights[output] += parts.embedding
    pipelined = run.pipeline and len(used) > 1
    compute = compute_buffer(model, run, pipelined)
    host_compute = compute if not used else _host_compute(model, run, pipelined)
    devices = tuple(
        Buffers(weights[d], kv[d], compute if d in used else 0.0) for d in range(run.devices)
    )
    idle = 0.0 if used else host_compute - compute_buffer(model, run, logits=False)
    return Buffers(weights[-1], kv[-1], host_compute, idle), devices


def spilled(layout: Layout, run: Run) -> float:
    """Bytes of the repeating layers that stay in RAM."""
    last = len(layout.parts.layers)
    return sum(
        layout.upto[min(end, last)] - layout.upto[min(start, last)]
        for device, start, end in segments(last, run)
        if device < 0
    )


def host_overhead(model: ModelSpec, run: Run) -> float:
    """Bytes of the server's process beside its buffers, when it has worked on a full context.

    The process itself, its vocabulary, and the CPU's scratch memory: a product needs its right
    side in the type of its left one, the widest are the attention weights, in 16 bit like V. On the
    CPU the Python server also reserves the input, and K and V of a batch before they are stored,
    which published compute buffers of other builds do not show.
    """
    server, more = run.server, run.sequences - 1
    fixed: float = server.overhead + (server.vocab_entry + more * server.slot_entry) * model.vocab
    fixed += more * server.slot
    fixed += server.checkpoints * run.sequences * _unrollable(model, run)
    if not run.on_host:
        return fixed
    step = min(run.ubatch, run.context)
    kept = 0.0 if run.flash_attention else model.heads * run.context / max(1, run.sequences)
    hidden = model.hidden or model.heads * model.head_dim
    beside = 0 if server.last_rows else _F32 * (hidden + 2 * model.kv_heads * model.head_dim)
    return fixed + step * (beside + max(2 * kept, _Q8_K * model.intermediate))


def _unrollable(model: ModelSpec, run: Run) -> float:
    """Bytes of one copy of a sequence's states and windows, which cannot be rolled back."""
    total = 0.0
    for group in model.cache_groups:
        if group.kind == "state":
            total += group.layers * group.state_bytes
        elif group.kind == "sliding" and group.window:
            kept = min(group.window, run.context / max(1, run.sequences))
            total += group.layers * kept * layer_bytes_per_token(group, run.kv_dtype)
    return total


def device_overhead(model: ModelSpec) -> float:
    """Bytes beside the buffers of a card: the context, and one matrix unpacked for cuBLAS."""
    if model.weight_bytes >= 1.5 * model.params:
        return float(CUDA_CONTEXT)
    wide, hidden = model.intermediate, model.hidden
    return CUDA_CONTEXT + 2.0 * wide * hidden + UBATCH * (6.0 * wide + 2.0 * hidden)


def _host_compute(model: ModelSpec, run: Run, pipelined: bool) -> float:
    """The inputs that the host prepares: embeddings and the mask; thrice for several cards."""
    step = min(run.ubatch, run.context)
    hidden = model.hidden or model.heads * model.head_dim
    context = run.context / max(1, run.sequences)
    bytes_of_mask = 2 if run.flash_attention else _F32
    once = step * (hidden * _F32 + context * bytes_of_mask)
    return once * (3 if pipelined else 1)
