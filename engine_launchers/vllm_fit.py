"""Whether and how a model fits vLLM on given cards: the rules and the sizes. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from engine_launchers import vllm_memory, vllm_rules
from engine_launchers.base import CrashCause, EnginePlan, Fit, MemoryEstimate, Rejection, Tuning
from engine_launchers.caches import longest_context
from engine_launchers.loading import loaded
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.relaxing import gib

RELEASE = (0, 32)
MIN_CONTEXT = 4096  # less is not worth a server, unless it was asked for or the model has no more
_CPU_FULL_REQUESTS = 4  # with a full context, that the cache in RAM is made for unless told
_LEAST_SHARED = 512  # for each of a number of users that was asked for
_TYPICAL_REQUEST = 1024  # tokens that the number of sequences is sized for
# API, EngineCore and one worker before weights and cache, shared pages once; each further worker.
_CPU_OVERHEAD, _CPU_RANK = int(1.55 * 2**30), int(0.43 * 2**30)
_CPU_STEP = 2048  # prompt tokens a step, vLLM's own default there


def fit(
    model: ModelSpec, hardware: HardwareProfile, wish: Tuning, pinned: frozenset[str]
) -> Fit | Rejection:
    """Tensor and pipeline parallel over all GPUs of the profile; in RAM where it has none."""
    refused = vllm_rules.refuse_artefact(model) or vllm_rules.refuse_machine(model, hardware)
    if refused is None and hardware.gpus:
        refused = vllm_rules.refuse_parallel(model, wish)
    if refused is not None:
        return refused
    if not hardware.gpus:
        return _on_cpu(model, hardware, wish, pinned)
    if hardware.ram_available < _CPU_OVERHEAD:
        return vllm_rules.no(
            f"its processes take {gib(_CPU_OVERHEAD)} of RAM, {gib(hardware.ram_available)} are "
            "available",
            _CPU_OVERHEAD, hardware.ram_available, "bytes",
        )  # fmt: skip
    return _on_gpus(model, hardware, wish, pinned)


def _on_gpus(
    model: ModelSpec,
    hardware: HardwareProfile,
    wish: Tuning,
    pinned: frozenset[str],
) -> Fit | Rejection:
    reasons: list[str] = []
    dtype = vllm_rules.dtype(model, hardware.gpus, wish, reasons)
    model = loaded(model, dtype)
    tightest = min(hardware.gpus, key=lambda gpu: (gpu.vram_free, gpu.vram_total))
    total = vllm_memory.torch_total(tightest.vram_total)
    free = _torch_free(tightest, total)
    if tightest.unified:  # one memory: the processes themselves need some of it
        free = min(free, hardware.ram_available * 0.95 - _CPU_OVERHEAD)
    if free <= 0:
        taken = tightest.vram_total - tightest.vram_free
        return vllm_rules.no(
            f"{tightest.name} is full: others hold {gib(taken)} of {gib(tightest.vram_total)}",
            vllm_memory.CONTEXT, max(0.0, free), "bytes",
        )  # fmt: skip
    share = _share(wish, pinned, free, total, reasons)
    if share * total > free:
        return vllm_rules.no(
            f"gpu_memory_utilization {share:g} of {gib(total)} is more than the {gib(free)} "
            f"that are free; {math.floor(free / total * 100) / 100:g} would do",
            share * total, free, "bytes",
        )  # fmt: skip
    run = vllm_memory.Run(
        version=RELEASE,
        tensor_parallel=wish.tensor_parallel or 1,
        pipeline_parallel=wish.pipeline_parallel or 1,
        utilization=share,
        max_num_seqs=wish.max_concurrency or 256,
        kv_cache_dtype=wish.kv_cache_dtype,
        lora=bool(model.adapters),
        sampler_bytes=vllm_memory.SAMPLER_BOUND,
    )
    a100 = any(name in tightest.name for name in ("A100", "A800"))
    _, step = vllm_memory.defaults(run, total, a100)
    run = replace(run, max_num_batched_tokens=wish.batch or step)
    budget = vllm_memory.budget(model, run, total)
    if budget.kv <= 0:
        need = budget.weights + budget.activations + budget.non_torch + budget.graphs
        return vllm_rules.no(
            f"{_of(model)} needs {gib(need)} on each GPU before any cache, "
            f"{gib(budget.requested)} of {gib(total)} may be used",
            need, budget.requested, "bytes",
        )  # fmt: skip
    sized = _size(model, run, budget.kv, wish, pinned, reasons)
    if isinstance(sized, Rejection):
        return sized
    run = replace(run, max_model_len=sized["max_model_len"], max_num_seqs=sized["max_concurrency"])
    if why := vllm_memory.refusal(model, run, budget.kv, total, a100):
        return vllm_rules.no(f"vLLM would refuse to start: {why}")
    tuning = wish.model_copy(
        update={
            **sized,
            "gpu_memory_fraction": share,
            "tensor_parallel": run.tensor_parallel,
            "pipeline_parallel": run.pipeline_parallel,
            "batch": run.max_num_batched_tokens,
            "dtype": dtype,
            "quantization": model.quantization,
            "gpu_layers": None,
            "threads": None,
            "flash_attention": None,
        }
    )
    estimate = tuple(
        MemoryEstimate(
            device=f"gpu:{gpu.index}",
            weights=int(budget.weights),
            kv=int(budget.kv),
            activations=int(budget.activations),
            overhead=int(budget.non_torch + budget.graphs + budget.outside),
            capacity=gpu.vram_total,
            others=gpu.vram_total - gpu.vram_free,
        )
        for gpu in hardware.gpus
    )
    return Fit(
        tuning=tuning,
        gpus=tuple(range(len(hardware.gpus))),
        estimate=estimate,
        reasons=tuple(reasons),
    )


def refit(plan: EnginePlan, cause: CrashCause | None = None) -> EnginePlan:
    """The same plan with what its tuning now takes of each device.

    In RAM a cache that was too small for its context keeps its size, others shrink with it.
    """
    cards = [part for part in plan.estimate if part.device.startswith("gpu")]
    if not cards:
        return plan if cause is CrashCause.KV_CACHE_TOO_SMALL else _refit_ram(plan)
    tightest = min(cards, key=lambda part: part.capacity - part.others)
    model = loaded(plan.model, plan.tuning.dtype)
    budget = vllm_memory.budget(model, _run(plan), vllm_memory.torch_total(tightest.capacity))
    update = {
        "weights": int(budget.weights),
        "kv": int(max(0.0, budget.kv)),
        "activations": int(budget.activations),
        "overhead": int(budget.non_torch + budget.graphs + budget.outside),
    }
    after = tuple(
        part.model_copy(update=update) if part.device.startswith("gpu") else part
        for part in plan.estimate
    )
    return plan.model_copy(update={"estimate": after})


def _refit_ram(plan: EnginePlan) -> EnginePlan:
    """What is left of the cache that it had, where the sequences or the context are fewer now."""
    if not plan.estimate:
        return plan
    run, model = _run(plan), loaded(plan.model, plan.tuning.dtype)
    ranks, part = run.tensor_parallel, plan.estimate[0]
    full = _full_requests(plan.tuning.max_concurrency or 1, plan.pinned)
    kv = vllm_memory.ram_cache(model, run, plan.tuning.max_model_len or model.context_max, full)
    peak = vllm_memory.activation_peak(model, run, 0) * ranks
    update = {"kv": min(part.kv, int(kv * ranks)), "activations": int(peak)}
    return plan.model_copy(update={"estimate": (part.model_copy(update=update),)})


def holds(plan: EnginePlan) -> bool:
    """Whether the estimated cache holds one request with the plan's whole context."""
    run, model = _run(plan), loaded(plan.model, plan.tuning.dtype)
    context = plan.tuning.max_model_len or model.context_max
    need = vllm_memory.request_bytes(model, run, context, plan.tuning.batch or 2048)
    return all(part.kv >= need for part in plan.estimate if part.device.startswith("gpu"))


def _run(plan: EnginePlan) -> vllm_memory.Run:
    tuning = plan.tuning
    return vllm_memory.Run(
        version=RELEASE,
        tensor_parallel=tuning.tensor_parallel or 1,
        pipeline_parallel=tuning.pipeline_parallel or 1,
        utilization=tuning.gpu_memory_fraction,
        max_model_len=tuning.max_model_len,
        max_num_seqs=tuning.max_concurrency,
        max_num_batched_tokens=tuning.batch,
        kv_cache_dtype=_cached(tuning.kv_cache_dtype, tuning.dtype),
        lora=bool(plan.model.adapters),
        sampler_bytes=vllm_memory.SAMPLER_BOUND,
    )


def _share(
    wish: Tuning,
    pinned: frozenset[str],
    free: float,
    total: float,
    reasons: list[str],
) -> float:
    """The memory fraction: the wish, or less where other processes hold the card."""
    wanted = wish.gpu_memory_fraction or vllm_memory.default_utilization(RELEASE)
    if "gpu_memory_fraction" in pinned:
        return wanted
    possible = math.floor(free / total * 100) / 100
    if possible < wanted:
        reasons.append(f"gpu_memory_utilization {possible:g}: {gib(free)} of the card are free")
    return max(0.0, min(wanted, possible))


def _size(
    model: ModelSpec,
    run: vllm_memory.Run,
    kv: float,
    wish: Tuning,
    pinned: frozenset[str],
    reasons: list[str],
) -> dict[str, int] | Rejection:
    """Context and sequences that `kv` bytes of the tightest rank hold."""
    wanted = min(wish.max_model_len or model.context_max, model.context_max)
    if "max_model_len" in pinned and (wish.max_model_len or 0) > model.context_max:
        return vllm_rules.no(
            f"context {wish.max_model_len} was asked for, the model has {model.context_max}",
            wish.max_model_len, model.context_max, "tokens",
        )  # fmt: skip
    seqs = run.max_num_seqs or 256
    users = seqs if "max_concurrency" in pinned else 1
    pool = vllm_memory.state_pool(model, run)
    step = run.max_num_batched_tokens or 0
    if pool is not None:
        blocks = pool.blocks(kv)
        context = min(wanted, pool.longest(kv / users))
        if seqs > blocks and "max_concurrency" not in pinned:
            reasons.append(f"{blocks} sequences: one state block each, {seqs} wished")
            seqs = blocks
        elif seqs > blocks:
            return vllm_rules.no(
                f"{seqs} sequences need a state block each, {blocks} fit; ask for {blocks}",
                seqs, blocks, "state blocks",
            )  # fmt: skip
    else:
        ranks = run.tensor_parallel
        context = longest_context(
            model, kv * run.pipeline_parallel, wanted, run.kv_cache_dtype, ranks, step, users
        )
    least = min(MIN_CONTEXT if users == 1 else _LEAST_SHARED, wanted)
    if context < wanted and "max_model_len" in pinned:
        least = wanted
    if context < least or context < 1:
        return vllm_rules.no(
            f"{_of(model)} leaves {gib(kv)} for the cache: {context} tokens"
            + (f" for each of {users}" if users > 1 else "")
            + f", {least} wanted",
            least, context, "tokens",
        )  # fmt: skip
    if context < wanted:
        context = context // 256 * 256 or context
        reasons.append(f"context {context}: the cache has {gib(kv)}, {wanted} tokens wished")
    if "max_concurrency" not in pinned and pool is None:
        each = vllm_memory.request_bytes(model, run, min(context, _TYPICAL_REQUEST), step)
        room = max(1, int(kv // max(1.0, each)))
        if room < seqs:
            reasons.append(
                f"{room} sequences: the cache holds as many of {_TYPICAL_REQUEST} tokens"
            )
            seqs = room
    return {"max_model_len": context, "max_concurrency": seqs}


def _on_cpu(
    model: ModelSpec,
    hardware: HardwareProfile,
    wish: Tuning,
    pinned: frozenset[str],
) -> Fit | Rejection:
    """In RAM: the cache has the size that the context and the sequences need, and says it."""
    ranks = wish.tensor_parallel or 1
    if refused := vllm_rules.refuse_cpu(model, hardware, wish):
        return refused
    reasons: list[str] = ["in RAM: no GPU is used"]
    dtype = vllm_rules.cpu_dtype(model, hardware, wish, reasons)
    model = loaded(model, dtype)
    run = vllm_memory.Run(
        version=RELEASE,
        eager=True,
        tensor_parallel=ranks,
        max_num_seqs=wish.max_concurrency or 1,
        max_num_batched_tokens=wish.batch or _CPU_STEP,
        kv_cache_dtype=_cached(wish.kv_cache_dtype, dtype),
    )
    weights = model.weight_bytes
    peak = vllm_memory.activation_peak(model, run, 0) * ranks
    overhead = cpu_overhead(ranks)
    room = hardware.ram_available * 0.95 - weights - peak - overhead
    sized = _size(model, run, room / ranks, wish, pinned, reasons) if room > 0 else vllm_rules.no(
        f"{_of(model)} needs {gib(weights + peak + overhead)} of RAM before any cache, "
        f"{gib(hardware.ram_available)} are available",
        weights + peak + overhead, hardware.ram_available, "bytes",
    )  # fmt: skip
    if isinstance(sized, Rejection):
        return sized
    kv = vllm_memory.ram_cache(
        model, run, sized["max_model_len"], _full_requests(sized["max_concurrency"], pinned)
    )
    estimate = MemoryEstimate(
        device="ram",
        weights=int(weights),
        kv=int(min(kv * ranks, room)),
        activations=int(peak),
        overhead=overhead,
        capacity=hardware.ram_total,
        others=hardware.ram_total - hardware.ram_available,
    )
    update = {
        **sized,
        "gpu_memory_fraction": None,
        "gpu_layers": None,
        "threads": wish.threads or hardware.cpu_cores,
        "batch": run.max_num_batched_tokens,
        "quantization": model.quantization,
        "dtype": dtype,
        "tensor_parallel": ranks,
    }
    tuning = wish.model_copy(update=update)
    return Fit(tuning=tuning, estimate=(estimate,), reasons=tuple(reasons))


def _cached(kind: str | None, dtype: str | None) -> str | None:
    """What a cache element is kept in: as it is computed, where nothing else is said."""
    return dtype if kind is None and dtype == "float32" else kind


def _full_requests(sequences: int, pinned: frozenset[str]) -> int:
    """With a full context, for which the cache is made: all where a number was asked for."""
    return sequences if "max_concurrency" in pinned else min(sequences, _CPU_FULL_REQUESTS)


def cpu_overhead(ranks: int) -> int:
    """Bytes of RAM that the processes take before weights and cache."""
    return _CPU_OVERHEAD + (ranks - 1) * _CPU_RANK


def _torch_free(gpu: Gpu, total: float) -> float:
    """What torch finds free when it starts: less than the driver says, by a CUDA context."""
    return gpu.vram_free * (total / gpu.vram_total if gpu.vram_total else 0) - vllm_memory.CONTEXT


def _of(model: ModelSpec) -> str:
    return f"{model.quantization} of {model.params / 1e9:.1f} B weights"
