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
_FUSED_QKV = frozenset({"phi2", "phi3", "PhiForCausalLM", "Phi3ForCausalLM", "gptneox", "falcon"})
_ALIGN = 256  # llama.cpp pads every sequence's cache to this many cells


@dataclass(frozen=True)
class Server:
    """What one kind of server adds to llama.cpp's own buffers, and what it does otherwise.

    `overhead` is its process: code, libraries, HTTP, graphs. `vocab_entry` is what each piece of
    the vocabulary takes: text both ways, merge, a sampler's candidate. Each further sequence takes
    `slot` bytes, and `slot_entry` for each piece of the vocabulary. `slots` is the most sequences
    that it works on at the same time, `checkpoints` how many copies it keeps per sequence of what
    cannot be rolled back: states and windows.

    `last_rows`: the compute buffer holds logits for one token of each sequence, instead of for all
    tokens of a batch, and its inputs. `auto_flash`: it uses flash attention on processors too.
    """

    overhead: int
    vocab_entry: int
    slot: int = 0
    slot_entry: int = 0
    slots: int = 1
    checkpoints: int = 0
    last_rows: bool = False
    auto_flash: bool = False


PYTHON = Server(overhead=79 * MIB, vocab_entry=344)
NATIVE = Server(
    overhead=int(22.6 * MIB),
    vocab_entry=240,
    slot=MIB // 2,
    slot_entry=16,
    slots=256,
    checkpoints=2,
    last_rows=True,
    auto_flash=True,
)


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
    server: Server = PYTHON

    @property
    def on_host(self) -> bool:
        """Whether no card computes anything."""
        return self.devices == 0 or self.gpu_layers == 0


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
    feed_forward: float = 2 * used * model.intermediate + 2 * hidden + mask
    output: float = model.vocab + hidden if logits else 0
    if run.server.last_rows:
        # Up, gate and their product, beside the residual; a gate of two hidden sizes at most fits
        # into the place that attention has left.
        reused = 3 if model.intermediate <= 2 * hidden else 4
        seen = mask / 2 if run.flash_attention else mask
        feed_forward = 3 * used * model.intermediate + reused * hidden + seen
        output = model.vocab * run.sequences / step
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
    for adapter in model.adapters:  # its tensors lie beside those that they change
        for layer in range(len(parts.layers)):
            weights[where[layer]] += adapter.weight_bytes / len(parts.layers)
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
