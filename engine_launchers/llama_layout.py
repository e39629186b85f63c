"""How one run of llama.cpp is set up, and which device each layer of a model lies on. Pure.

Which layer goes where follows llama.cpp's rule: the last `ngl` layers are offloaded, layer i of
n + 1 (the output layer counts) to the card whose share i falls in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine_launchers.model import CacheGroup, ModelSpec, WeightParts

MIB = 2**20
UBATCH = 512


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


def placement(layers: int, run: Run) -> tuple[int, ...]:
    """Device index of each layer and, last, of the output layer; -1 is the host."""
    return tuple(at for at, start, end in segments(layers, run) for _ in range(start, end))


def segments(layers: int, run: Run) -> list[tuple[int, int, int]]:
    """(device, first layer, layer behind the last) in order; the output layer is the last one."""
    wanted = layers + 1 if run.gpu_layers < 0 else min(run.gpu_layers, layers + 1)
    if run.devices == 0 or wanted == 0:
        return [(-1, 0, layers + 1)]
    with_output = run.today or wanted > layers
    first = layers + 1 - wanted if with_output else layers - wanted
    shares = run.shares or (1.0,) * run.devices
    found = [(-1, 0, first)]
    for device in range(run.devices):
        start, end = found[-1][2], first + wanted
        if device < run.devices - 1:
            end = first + _below(sum(shares[: device + 1]) / sum(shares), wanted)
        found.append((device, start, max(start, end)))
    return found if with_output else [*found, (-1, layers, layers + 1)]


def _below(edge: float, wanted: int) -> int:
    """How many of the positions 0, 1/wanted, 2/wanted, … lie below `edge`."""
    count = min(wanted, int(edge * wanted))
    while count < wanted and count / wanted < edge:
        count += 1
    while count and (count - 1) / wanted >= edge:
        count -= 1
    return count


@dataclass(frozen=True)
class Layout:
    """A model's layers in order, taken apart once for many runs.

    `upto[n]` are the bytes of the first n layers, `counts[g][n]` how many of them are of group g.
    """

    model: ModelSpec
    parts: WeightParts
    groups: tuple[CacheGroup, ...]
    upto: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: ModelSpec) -> Layout:
        """Weights and cache of every layer; an adapter's tensors lie beside those it changes."""
        groups = tuple(group for group in model.cache_groups if group.layers)
        parts = weight_parts(model)
        adapted = sum(adapter.weight_bytes for adapter in model.adapters) / len(parts.layers)
        upto = accumulate((size + adapted for size in parts.layers), initial=0.0)
        order = layer_groups(groups)[: len(parts.layers)]
        order += (-1,) * (len(parts.layers) - len(order))
        counts = (
            tuple(accumulate((int(at == g) for at in order), initial=0)) for g in range(len(groups))
        )
        return cls(model, parts, groups, tuple(upto), tuple(counts))

    @property
    def layers(self) -> int:
        """What `gpu_layers` counts: the repeating layers and the output layer."""
        return len(self.parts.layers) + 1
