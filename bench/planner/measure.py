"""One row against the memory model: what we would have said, and how far off it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from bench.planner import truth
from bench.planner.baselines import APPLIES, RULES, Claim, Situation
from bench.planner.names import Facts, Row
from engine_launchers import llama_memory, vllm_memory
from engine_launchers.base import MemoryEstimate, Tuning
from engine_launchers.llama_cpp import LlamaCppLauncher
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from orchestrator.planning.speed import expect

GIB, MIB = 2**30, 2**20

# Failures that no memory model is about.
_OF_MEMORY = re.compile(
    r"memory|oom|max seq len|cache|kv|blocks|alloc|room|capacity|CUDA error 2|no answer", re.I
)
_HOST = re.compile(r"CPU|Host|Mapped")


@dataclass
class Judged:
    """What one row shows. `errors` maps a figure's name to |predicted - observed| in its unit.

    `refused` is our verdict (None: the row does not say enough), `failed` what happened (None:
    the failure was not one of memory). `why` is our reason or what the row lacks. `by_need`: the
    card or the precision is not named, so that only the need was computed, and held against the
    cache size that the row prints.
    """

    id: str
    engine: str
    tier: str
    errors: dict[str, float] = field(default_factory=dict)
    refused: bool | None = None
    failed: bool | None = None
    why: str = ""
    by_need: bool = False
    peers: dict[str, Claim] = field(default_factory=dict)
    total: float | None = None


def judge(row: Row, facts: Facts, cards: truth.Cards) -> Judged | None:
    """The verdict on one row; None for engines that are not modelled."""
    name = row["engine"].lower()
    if name.startswith(("vllm", "aphrodite")):
        return _vllm(row, facts, cards)
    if "llama" in name or name in {"koboldcpp", "lm studio (llama.cpp)"}:
        return _llama(row, facts, cards)
    return None


def _failed(row: Row) -> bool | None:
    kind = row["observed"]["outcome_class"]
    if kind == "ok":
        return False
    return True if _OF_MEMORY.search(row["observed"].get("outcome") or kind) else None


def _vllm(row: Row, facts: Facts, cards: truth.Cards) -> Judged:
    seen = row["observed"]
    out = Judged(row["id"], "vllm", row["tier"], failed=_failed(row))
    release, v1 = truth.version(row)
    run = vllm_memory.Run(
        version=release,
        v1=v1,
        tensor_parallel=row["tensor_parallel"] or row["gpu_count"] or 1,
        pipeline_parallel=row["pipeline_parallel"] or 1,
        utilization=row["gpu_memory_utilization"],
        max_model_len=row["max_model_len"],
        max_num_seqs=row["max_num_seqs"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        kv_cache_dtype=row["kv_cache_dtype"],
        eager="eager" in f"{row['engine_version']} {row.get('note') or ''}".lower(),
    )
    total = _torch_total(row, cards)
    free = seen.get("free_gib_start")
    share = run.utilization or vllm_memory.default_utilization(release)
    if free is not None and total is not None and total * share > free * GIB:
        out.refused, out.why = True, "free memory at the start is less than the share asked for"
    known = truth.subject(row, facts)
    if known is None:
        return _by_need(out, row, truth.shape(row, facts), run)
    card = cards.spec(row)
    if card and card.compute_capability and card.compute_capability < vllm_memory.CAPABILITY:
        out.refused, out.why = True, "compute capability below 7.5"
    a100 = "a100" in row["gpu"].lower() or "a800" in row["gpu"].lower()
    weights = seen.get("weights_gib")
    if weights:
        plain = vllm_memory.rank_weights(known.from_config, run)
        out.errors["weights_config_pct"] = abs(plain / GIB - weights) / weights * 100
        if known.sized is not None:
            sized = vllm_memory.rank_weights(known.sized, run)
            out.errors["weights_bytes_pct"] = abs(sized / GIB - weights) / weights * 100
    model = known.sized or known.from_config
    run = replace(run, max_model_len=run.max_model_len or model.context_max)
    if total is not None:
        budget = vllm_memory.budget(model, run, total, a100=a100)
        _vllm_figures(out, row, model, run, total, a100)
        kv = budget.kv
    elif seen.get("kv_cache_gib"):
        kv = seen["kv_cache_gib"] * GIB
        out.by_need = True
    else:
        out.why = out.why or "card not known"
        return out
    if out.refused is None:
        out.why = vllm_memory.refusal(model, run, kv, total, a100)
        out.refused = bool(out.why)
    context = run.max_model_len or model.context_max
    cards_used = run.tensor_parallel * run.pipeline_parallel
    if total is not None:
        at = Situation(
            model, total, cards_used, run.tensor_parallel, context, share, run.kv_cache_dtype
        )
        out.peers = {name: RULES[name](at) for name in APPLIES["vllm"]}
    return out


def _by_need(out: Judged, row: Row, model: ModelSpec | None, run: vllm_memory.Run) -> Judged:
    """Where the precision is not stated, the shape still says what a request needs."""
    kv = row["observed"].get("kv_cache_gib")
    if out.refused is None and model is not None and kv:
        out.why = vllm_memory.refusal(model, run, kv * GIB)
        out.refused, out.by_need = bool(out.why), True
    out.why = out.why or "model or precision not known"
    return out


def _vllm_figures(
    out: Judged,
    row: Row,
    model: ModelSpec,
    run: vllm_memory.Run,
    total: float,
    a100: bool,
) -> None:
    """Errors of KV given the weights, of the parts, and of what is taken beside the cache."""
    seen = row["observed"]
    weights, kv = seen.get("weights_gib"), seen.get("kv_cache_gib")
    given = vllm_memory.budget(
        model, run, total, weights=weights * GIB if weights else None, a100=a100
    )
    if kv is not None and weights:
        out.errors["kv_gib"] = abs(given.kv / GIB - kv)
        out.errors["kv_pct_of_card"] = abs(given.kv - kv * GIB) / total * 100
    if kv is not None and seen.get("kv_cache_tokens") and kv > 0 and not model.hybrid:
        need = vllm_memory.request_bytes(model, run, 2**20) / 2**20
        if not any(g.kind == "sliding" for g in model.cache_groups):
            actual = kv * GIB / seen["kv_cache_tokens"]
            out.errors["kv_per_token_pct"] = abs(need - actual) / actual * 100
    peak, rest = seen.get("activation_peak_gib"), seen.get("non_torch_gib")
    if peak is not None and rest is not None and weights:
        blind = vllm_memory.budget(model, run, total, a100=a100)
        ours = (blind.weights + blind.activations + blind.non_torch) / GIB
        out.total = weights + peak + rest
        out.errors["total_gib"] = abs(ours - out.total)
        out.errors["total_pct"] = abs(ours - out.total) / out.total * 100


def _torch_total(row: Row, cards: truth.Cards) -> float | None:
    seen = row["observed"].get("total_gpu_gib")
    if seen:
        return float(seen) * GIB
    printed = re.search(r"\(([\d.]+) ?GiB", row["gpu"])
    if printed and "free" not in row["gpu"]:
        return float(printed.group(1)) * GIB
    reported = cards.reported(row)
    if reported is None:
        return None
    return reported if "WSL" in row["gpu"] else vllm_memory.torch_total(reported)


def _llama(row: Row, facts: Facts, cards: truth.Cards) -> Judged:
    out = Judged(row["id"], "llama.cpp", row["tier"], failed=_failed(row))
    known = truth.subject(row, facts)
    context = truth.stated_context(row)
    if known is None or context is None:
        out.why = "model or precision not known"
        return out
    model = known.from_config
    devices = int(row["gpu_count"] or 0)
    run = llama_memory.Run(
        context=context,
        gpu_layers=truth.offloaded(row),
        devices=devices,
        flash_attention=truth.flash_attention(row),
        kv_dtype=row["kv_cache_dtype"],
        today=False,
        pipeline=not row["observed"].get("vram_scratch_mib"),
    )
    host, gpus = llama_memory.buffers(model, run)
    _llama_figures(out, row, host, gpus)
    _llama_speed(out, row, model, run, (*gpus, host), cards)
    held = max((g.total for g in gpus), default=host.total)
    limit = cards.stated_free(row)
    reported = cards.reported(row) if devices else None
    if limit is None and reported is not None:
        limit = llama_memory.visible_total(reported)
    if limit is not None and row["n_gpu_layers"] is None and devices and held > limit:
        out.why = "does not fit whole; how many layers were offloaded is not stated"
    elif limit is not None:
        beside = llama_memory.host_overhead(model, run)
        if devices:
            beside = llama_memory.device_overhead(model)
        need = held + beside
        out.refused = need > limit
        out.why = f"needs {need / MIB:.0f} MiB of {limit / MIB:.0f}"
        at = Situation(model, limit, max(1, devices), 1, context, 1.0, run.kv_dtype)
        out.peers = {name: RULES[name](at) for name in APPLIES["llama.cpp"]}
    else:
        out.why = "memory of the device not known"
    return out


def _llama_figures(
    out: Judged,
    row: Row,
    host: llama_memory.Buffers,
    gpus: tuple[llama_memory.Buffers, ...],
) -> None:
    seen = row["observed"]
    on_device = bool(gpus)
    kv = sum(g.kv for g in gpus) + host.kv
    if seen.get("kv_cache_gib") is not None:
        out.errors["kv_mib"] = abs(kv / MIB - seen["kv_cache_gib"] * 1024)
    weights = sum(g.weights for g in gpus) if on_device else host.weights
    measured = _sum(seen.get("model_buffers_mib"), on_device) or seen.get("vram_used_mib")
    if measured:
        out.errors["model_pct"] = abs(weights / MIB - measured) / measured * 100
    compute = max((g.compute for g in gpus), default=host.compute)
    widest = _max(seen.get("compute_buffers_mib"), on_device)
    if widest:
        out.errors["compute_pct"] = abs(compute / MIB - widest) / widest * 100
    whole = seen.get("device_buffers_total_mib") or seen.get("total_vram_used_mib")
    if whole and on_device:
        ours = sum(g.total for g in gpus) / MIB
        if seen.get("total_vram_used_mib"):  # one scratch for all cards, in the old allocator
            ours -= sum(g.compute for g in gpus[1:]) / MIB
        out.total = whole / 1024
        out.errors["total_pct"] = abs(ours - whole) / whole * 100
        out.errors["total_gib"] = abs(ours - whole) / 1024


def _llama_speed(
    out: Judged,
    row: Row,
    model: ModelSpec,
    run: llama_memory.Run,
    held: tuple[llama_memory.Buffers, ...],
    cards: truth.Cards,
) -> None:
    """Error of the expected decode rate, for cards whose figures are published."""
    seen, spec = row["observed"].get("tokens_per_s"), cards.spec(row)
    if not seen or spec is None or not run.devices or run.gpu_layers >= 0:
        return
    size = int(spec.memory_gb * GIB)
    gpus = tuple(
        Gpu(index=i, uuid=str(i), name=spec.name, vendor=spec.vendor, vram_total=size,
            vram_free=size, unified=spec.unified)
        for i in range(run.devices)
    )  # fmt: skip
    machine = HardwareProfile(
        gpus=gpus, ram_total=2**40, ram_available=2**40, cpu_cores=8, platform="linux-x86_64"
    )
    estimate = tuple(
        MemoryEstimate(
            device=f"gpu:{i}" if i < run.devices else "ram",
            weights=int(part.weights), kv=int(part.kv), activations=0, overhead=0,
        )
        for i, part in enumerate(held)
    )  # fmt: skip
    traits = LlamaCppLauncher.speed
    known = {gpu.uuid: spec for gpu in gpus}
    rate = expect(model, Tuning(), estimate, machine, known, traits).tokens_per_second
    if rate:
        out.errors["tokens_per_s_pct"] = abs(sum(rate) / 2 - seen) / seen * 100


def _sum(buffers: dict[str, float] | None, on_device: bool) -> float:
    chosen = [v for k, v in (buffers or {}).items() if bool(_HOST.search(k)) != on_device]
    return sum(chosen)


def _max(buffers: dict[str, float] | None, on_device: bool) -> float:
    chosen = [v for k, v in (buffers or {}).items() if bool(_HOST.search(k)) != on_device]
    return max(chosen, default=0.0)
