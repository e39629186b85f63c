"""What vLLM takes from each GPU, by version.

The budget identity, read in the source of 0.32.0 and checked against log lines of older versions:

    requested = total x gpu_memory_utilization
    kv        = requested - weights - activation peak - non-torch [- CUDA graph estimate]

`total` is what torch sees, a little less than what nvidia-smi prints. The activation peak is the
larger of two: the sampler, which sorts `max_num_seqs` rows of the vocabulary in the profile run, or
one layer over the tokens of a step. Graphs are inside the budget since 0.21, on top of it before.
The smallest rank decides how many blocks all ranks have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine_launchers.caches import layer_bytes_per_token, sequence_bytes
from engine_launchers.model import CacheGroup, ModelSpec

GIB = 2**30
CAPABILITY = (7, 5)  # the oldest NVIDIA generation that it is used on

# Bytes per (sequence x vocabulary entry) of the profile run's sampler: 26 published peaks lie
# between 38.3 and 41.2 while it sorted; since 0.16 it does not, and the two figures that are known
# (a table in vLLM's pull request 32558, one 0.27.1 log) give 12 and 14.
# The sorting figure is the bound that plans are made with; the other one predicts.
SAMPLER_BOUND, _SAMPLER_TODAY = 39, 14
_GRAPHS_INSIDE_SINCE = (0, 21)
# CUDA graphs: 0.04 .. 1.15 GiB in recent logs. Before 0.16 they grew with the layers: 0.4 GiB for
# 32 layers on one card; 2.4 for 60 and 3.3 for 80 layers over several.
_GRAPHS = 0.5 * GIB
_GRAPHS_PER_LAYER = (0.0125 * GIB, 0.04 * GIB)
_VISION_ENCODER = 2.6 * GIB  # 2.5 .. 2.7 GiB of profile for vision models of 7B to 72B
CONTEXT = 0.6 * GIB  # a CUDA context on an idle card: total minus free at start
_LORA_BUFFERS = 0.2 * GIB
_BLOCK, _CPU_BLOCK = 16, 128
_MXFP4_WIDTH = 256


@dataclass(frozen=True)
class Run:
    """The settings of one vLLM run that decide about memory.

    `version` is (major, minor); `v1` tells the engine core of the transition (0.7 to 0.10).
    `max_num_seqs` and `max_num_batched_tokens` None mean the version's default for the card,
    `sampler_bytes` (per sequence and vocabulary entry) None the version's best guess.
    """

    version: tuple[int, int] = (0, 32)
    v1: bool = True
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: str | None = None
    eager: bool = False
    lora: bool = False
    sampler_bytes: int | None = None


@dataclass(frozen=True)
class Budget:
    """Bytes on the tightest rank. `kv` may be negative: then not even the weights fit.

    `graphs` is the share of the requested budget that CUDA graphs take, `outside` what lies on top
    of it: the CUDA context, and graphs before 0.21.
    """

    total: float
    requested: float
    weights: float
    activations: float
    non_torch: float
    graphs: float
    kv: float
    outside: float


def torch_total(reported: float) -> float:
    """What torch sees of a card for which nvidia-smi prints `reported` bytes."""
    return reported - 0.3 * GIB - 0.0035 * reported


def defaults(run: Run, total: float, a100: bool = False) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) that this version takes for a card of `total` bytes.

    Those of the API server. V0 computes whole prompts in one step unless they are longer than
    32768 tokens, then in chunks.
    """
    length = run.max_model_len or 0
    if not run.v1:
        chunk = 512 if run.version < (0, 7) else 2048
        step = chunk if length > 32768 else max(length, 2048)
        seqs = 256
    elif total >= 160 * GIB and run.version >= (0, 21):
        step, seqs = 16384, 1024
    elif total >= 70 * GIB and not a100:
        step, seqs = 8192, 1024
    else:
        step, seqs = 2048, 1024 if run.version <= (0, 8) else 256
    return run.max_num_seqs or seqs, run.max_num_batched_tokens or step


def default_utilization(version: tuple[int, int]) -> float:
    """The share of the card that a version takes unless told otherwise."""
    return 0.92 if version >= (0, 27) else 0.9


def rank_weights(model: ModelSpec, run: Run) -> float:
    """Weight bytes of the heaviest rank.

    Tensor parallel splits everything but norms; pipeline parallel gives the first stage the token
    table and the last one the output layer.
    """
    parts = model.weights
    padded = _padding(model)
    if run.pipeline_parallel == 1 or parts is None or not parts.layers:
        whole = (model.weight_bytes + padded) / run.pipeline_parallel
        return whole / run.tensor_parallel
    per_stage = math.ceil(len(parts.layers) / run.pipeline_parallel)
    stages = [
        sum(parts.layers[at : at + per_stage]) for at in range(0, len(parts.layers), per_stage)
    ]
    stages[0] += parts.embedding
    stages[-1] += parts.other + (parts.output or parts.embedding)
    return (max(stages) + padded / run.pipeline_parallel) / run.tensor_parallel


def _padding(model: ModelSpec) -> float:
    """Bytes by which MXFP4 experts grow: their width is filled up to a multiple of 256."""
    if model.quantization != "MXFP4" or model.weights is None or not model.intermediate:
        return 0.0
    wide = math.ceil(model.intermediate / _MXFP4_WIDTH) * _MXFP4_WIDTH
    return model.weights.experts * (wide / model.intermediate - 1)


def activation_peak(model: ModelSpec, run: Run, total: float, a100: bool = False) -> float:
    """Bytes of the profile run's peak above the weights, on the driver rank."""
    seqs, step = defaults(run, total, a100)
    guess = SAMPLER_BOUND if run.version < (0, 16) else _SAMPLER_TODAY
    per_row = run.sampler_bytes or guess
    sampler = per_row * seqs * model.vocab
    if run.v1 and run.version < (0, 8):
        sampler = 0  # the first releases of that core warmed the sampler up later
    width = model.intermediate / run.tensor_parallel
    if model.experts and model.experts_used:
        width *= model.experts_used
    if run.version < (0, 3) and model.quantization == "AWQ":
        width *= 8  # that kernel computed eight partial sums of every output
    layer = step * 2 * 3 * (width + model.hidden)
    vision = _VISION_ENCODER if model.vision_heads else 0.0
    return max(sampler, layer) + vision


def non_torch(run: Run) -> float:
    """Bytes outside torch's allocator: NCCL, cuBLAS, kernels."""
    ranks = run.tensor_parallel * run.pipeline_parallel
    if run.pipeline_parallel > 1:
        return 1.2 * GIB
    if ranks > 1:
        return 0.55 * GIB
    return (0.40 if not run.v1 and (0, 6) <= run.version < (0, 7) else 0.10) * GIB


def budget(
    model: ModelSpec,
    run: Run,
    total: float,
    *,
    weights: float | None = None,
    a100: bool = False,
) -> Budget:
    """The tightest rank's budget on cards of `total` bytes (torch's figure).

    `weights` replaces the computed bytes per rank where they are known.
    """
    share = default_utilization(run.version) if run.utilization is None else run.utilization
    requested = total * share
    held = rank_weights(model, run) if weights is None else weights
    held += _LORA_BUFFERS if run.lora and weights is None else 0.0
    peak = activation_peak(model, run, total, a100)
    rest = non_torch(run)
    graphs = 0.0 if run.eager else _graphs(model, run)
    inside = graphs if run.version >= _GRAPHS_INSIDE_SINCE else 0.0
    outside = CONTEXT + graphs - inside
    return Budget(
        total=total,
        requested=requested,
        weights=held,
        activations=peak,
        non_torch=rest,
        graphs=inside,
        kv=requested - held - peak - rest - inside,
        outside=outside,
    )


def _graphs(model: ModelSpec, run: Run) -> float:
    if run.version >= (0, 16):
        return _GRAPHS
    return model.layers * _GRAPHS_PER_LAYER[run.tensor_parallel > 1]


@dataclass(frozen=True)
class StatePool:
    """The shared pool of a hybrid model, on one rank.

    A block is `block_bytes` and holds `block_tokens` of the attention layers, or one sequence's
    state of one of `state_groups` groups of layers. One decode sequence needs at least one block.
    """

    block_bytes: float
    block_tokens: int
    state_groups: int

    def blocks(self, kv: float) -> int:
        """Blocks in `kv` bytes: the most sequences that vLLM accepts as `max_num_seqs`."""
        return int(max(0.0, kv) // self.block_bytes)

    def longest(self, kv: float) -> int:
        """Tokens of the one longest sequence that `kv` bytes hold."""
        return max(0, self.blocks(kv) - self.state_groups) * self.block_tokens

    def request(self, tokens: int) -> float:
        """Bytes that one sequence of `tokens` takes."""
        return (math.ceil(tokens / self.block_tokens) + self.state_groups) * self.block_bytes


def state_pool(model: ModelSpec, run: Run) -> StatePool | None:
    """How a hybrid model's memory is divided between states and caches; None for other models.

    All layers share pages of one size. Attention's block grows (in steps of 16 tokens) until its
    page holds a whole state; layers are pooled in groups of as many as the rarer kind has.
    """
    states = [group for group in model.cache_groups if group.kind == "state"]
    others = [group for group in model.cache_groups if group.kind != "state"]
    if not states or not others:
        return None
    ranks = run.tensor_parallel
    per_token = max(layer_bytes_per_token(g, run.kv_cache_dtype, ranks) for g in others)
    state = max(group.state_bytes for group in states) / ranks
    tokens = math.ceil(state / per_token / _BLOCK) * _BLOCK
    size = math.ceil(min(_layers(states), _layers(others)) / run.pipeline_parallel)
    return StatePool(tokens * per_token * size, tokens, math.ceil(_layers(states) / size))


def _layers(groups: list[CacheGroup]) -> int:
    return sum(group.layers for group in groups)


def request_bytes(model: ModelSpec, run: Run, tokens: int, step: int = 2048) -> float:
    """Cache bytes on one rank that one request of `tokens` needs: vLLM refuses to start below.

    V0 caches sliding layers like all others.
    """
    pool = state_pool(model, run)
    if pool is not None:
        return pool.request(tokens)
    ranks = run.tensor_parallel
    whole = sequence_bytes(model, tokens, run.kv_cache_dtype, ranks, step, windows=run.v1)
    return whole / run.pipeline_parallel


def ram_cache(model: ModelSpec, run: Run, context: int, requests: int) -> float:
    """Cache bytes of one rank on the processor for `requests` with a full `context`.

    Blocks hold 128 tokens there, and one of them is never given out.
    """
    whole = math.ceil(context / _CPU_BLOCK) * _CPU_BLOCK
    return requests * request_bytes(model, run, whole) + request_bytes(model, run, _CPU_BLOCK)


def refusal(
    model: ModelSpec, run: Run, kv: float, total: float | None = None, a100: bool = False
) -> str:
    """Why a run with `kv` bytes of cache on its tightest rank cannot start; empty where it can.

    `total` is torch's size of the card, None where it is not known.
    """
    context = run.max_model_len or model.context_max
    seqs, step = defaults(run, total or 0, a100)
    need = request_bytes(model, run, context, step)
    if kv < need:
        return (
            f"one request of {context} tokens needs {need / GIB:.2f} GiB, {kv / GIB:.2f} are left"
        )
    pool = state_pool(model, run)
    if pool is not None and seqs > pool.blocks(kv):
        return f"{seqs} sequences, {pool.blocks(kv)} state blocks"
    if total is None:
        return ""
    outside = budget(model, run, total, a100=a100).outside
    share = default_utilization(run.version) if run.utilization is None else run.utilization
    if total * (1 - share) < outside - CONTEXT / 2:
        return f"a share of {share} leaves less than the {outside / GIB:.2f} GiB that lie beside it"
    return ""
