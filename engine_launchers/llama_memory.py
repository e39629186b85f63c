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

from collections.abc import Sequence
from dataclasses import dataclass

from engine_launchers.caches import layer_bytes_per_token
from engine_launchers.model import CacheGroup, ModelSpec, WeightParts

MIB = 2**20
UBATCH = 512
_F32 = 4
_Q8_K = 292 / 256  # bytes per element of what is multiplied with quantized weights
CUDA_CONTEXT = 500 * MIB  # beside the buffers of a card: context, cuBLAS
HOST_OVERHEAD = 79 * MIB  # the server's process: interpreter, libraries, HTTP, graphs
_VOCAB_ENTRY = 344  # bytes: text both ways, piece, merge, and the sampler's candidate
_FUSED_QKV = frozenset({"phi2", "phi3", "PhiForCausalLM", "Phi3ForCausalLM", "gptneox", "falcon"})
_WINDOW_ALIGN = 256  # llama.cpp pads sliding caches to this many cells


@dataclass(frozen=True)
class Run:
    """The settings of one llama.cpp run that decide about memory.

    `gpu_layers` -1 means all, output layer included. `sequences` is the number of slots; their
    contexts add up to `context`. `shares` are the relative parts of several cards, empty: equal.
    `today`: as in the pinned version, the output layer counts as the first of `gpu_layers`;
    builds up to 2025 took it last.
    `pipeline`: several cards take turns on one prompt, as since 2024.
    """

    context: int
    gpu_layers: int = -1
    devices: int = 1
    shares: tuple[float, ...] = ()
    flash_attention: bool = False
    kv_dtype: str | None = None
    ubatch: int = UBATCH
    sequences: int = 1
    today: bool = True
    pipeline: bool = True

    @property
    def on_host(self) -> bool:
        """Whether no card computes anything."""
        return self.devices == 0 or self.gpu_layers == 0


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


def weight_parts(model: ModelSpec) -> WeightParts:
    """The model's parts; without a table of tensors, the layers share what is not the token table.

    The token table is then guessed at the average size of a weight.
    """
    if model.weights is not None and model.weights.layers:
        return model.weights
    average = model.weight_bytes / max(1, model.params)
    table = int(min(model.weight_bytes * 0.5, model.vocab * model.hidden * average))
    output = 0 if model.tied_embeddings else table
    rest = model.weight_bytes - table - output
    return WeightParts(
        embedding=table, output=output, layers=(rest // model.layers,) * model.layers
    )


def layer_groups(groups: Sequence[CacheGroup]) -> tuple[int, ...]:
    """Position in `groups` of each layer's group, spread evenly, as models interleave them."""
    if len(groups) == 1:
        return (0,) * groups[0].layers
    taken = [0] * len(groups)
    order: list[int] = []
    total = sum(group.layers for group in groups)
    for at in range(1, total + 1):
        behind = [
            group.layers * at / total - done for group, done in zip(groups, taken, strict=True)
        ]
        next_one = max(range(len(groups)), key=lambda i: behind[i])
        taken[next_one] += 1
        order.append(next_one)
    return tuple(order)


def layer_cache(group: CacheGroup, run: Run) -> float:
    """Bytes that one layer of `group` caches for the whole run."""
    if group.kind == "state":
        return float(group.state_bytes * run.sequences)
    cells = run.context
    if group.kind == "sliding" and group.window:
        wanted = group.window * run.sequences + run.ubatch
        cells = min(cells, -(-wanted // _WINDOW_ALIGN) * _WINDOW_ALIGN)
    return cells * layer_bytes_per_token(group, run.kv_dtype)


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
    output = model.vocab + hidden if logits else 0
    widest = max(attention, feed_forward, output)
    if pipelined:
        widest += 3 * mask + 4 * hidden
    return widest * step * _F32


def placement(layers: int, run: Run) -> tuple[int, ...]:
    """Device index of each layer and, last, of the output layer; -1 is the host."""
    wanted = layers + 1 if run.gpu_layers < 0 else min(run.gpu_layers, layers + 1)
    if run.devices == 0 or wanted == 0:
        return (-1,) * (layers + 1)
    if run.today or wanted > layers:
        first, with_output = layers + 1 - wanted, True
    else:
        first, with_output = layers - wanted, False
    shares = run.shares or (1.0,) * run.devices
    edges = [sum(shares[: i + 1]) / sum(shares) for i in range(run.devices)]
    where: list[int] = []
    for layer in range(layers + 1):
        if layer < first or (layer == layers and not with_output):
            where.append(-1)
            continue
        position = (layer - first) / wanted
        where.append(next((d for d, edge in enumerate(edges) if position < edge), run.devices - 1))
    return tuple(where)


@dataclass(frozen=True)
class Layout:
    """A model's layers in order, taken apart once for many runs."""

    model: ModelSpec
    parts: WeightParts
    groups: tuple[CacheGroup, ...]
    of_layer: tuple[int, ...]

    @classmethod
    def of(cls, model: ModelSpec) -> Layout:
        """Weights and cache of every layer."""
        groups = tuple(group for group in model.cache_groups if group.layers)
        return cls(model, weight_parts(model), groups, layer_groups(groups))

    @property
    def layers(self) -> int:
        """What `gpu_layers` counts: the repeating layers and the output layer."""
        return len(self.parts.layers) + 1


def buffers(model: ModelSpec, run: Run) -> tuple[Buffers, tuple[Buffers, ...]]:
    """(host, one per device). Unused devices hold nothing."""
    return laid_out(Layout.of(model), run)


def laid_out(layout: Layout, run: Run) -> tuple[Buffers, tuple[Buffers, ...]]:
    """(host, one per device) of a model that was taken apart before."""
    model, parts, of_layer = layout.model, layout.parts, layout.of_layer
    where = placement(len(parts.layers), run)
    cached = [layer_cache(group, run) for group in layout.groups]
    weights = [0.0] * (run.devices + 1)
    kv = [0.0] * (run.devices + 1)
    for layer, size in enumerate(parts.layers):
        weights[where[layer]] += size
        kv[where[layer]] += cached[of_layer[layer]] if layer < len(of_layer) else 0.0
    # A tied table is used twice: the host looks tokens up, the device of the output layer owns a
    # copy for the logits.
    weights[-1] += parts.embedding
    weights[where[-1]] += parts.output + parts.other
    if parts.output == 0 and where[-1] >= 0:
        weights[where[-1]] += parts.embedding
    used = sorted({device for device in where if device >= 0})
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
    where = placement(len(layout.parts.layers), run)
    return float(sum(size for layer, size in enumerate(layout.parts.layers) if where[layer] < 0))


def host_overhead(model: ModelSpec, run: Run) -> float:
    """Bytes of the server's process beside its buffers, when it has worked on a full context.

    The process itself, its vocabulary, and the CPU's scratch memory: a product needs its right
    side in the type of its left one, the widest are the attention weights, in 16 bit like V. On the
    CPU the pinned version also reserves the input, and K and V of a batch before they are stored,
    which published compute buffers of other builds do not show.
    """
    fixed = HOST_OVERHEAD + _VOCAB_ENTRY * model.vocab
    if not run.on_host:
        return fixed
    step = min(run.ubatch, run.context)
    kept = 0.0 if run.flash_attention else model.heads * run.context / max(1, run.sequences)
    hidden = model.hidden or model.heads * model.head_dim
    beside = _F32 * (hidden + 2 * model.kv_heads * model.head_dim)
    return fixed + step * (beside + max(2 * kept, _Q8_K * model.intermediate))


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
