"""Steps down for both servers of llama.cpp, and what the smaller plan then takes. Pure."""

from __future__ import annotations

from engine_launchers import llama_fit, llama_memory
from engine_launchers.base import CrashCause, EnginePlan
from engine_launchers.llama_memory import Run, Server
from engine_launchers.relaxing import Rung, halved

_ANY = frozenset({CrashCause.GPU_OOM, CrashCause.HOST_OOM, CrashCause.KV_CACHE_TOO_SMALL})
_SMALLEST_BATCH = 64


def fewer_layers(plan: EnginePlan) -> int | None:
    """Three quarters of the layers on the cards."""
    layers = plan.tuning.gpu_layers
    if not layers:
        return None
    return (layers if layers > 0 else plan.model.layers + 1) * 3 // 4


def _eight_bit_cache(plan: EnginePlan) -> str | None:
    """Half the cache. It needs flash attention, and rows of a multiple of 32 elements."""
    blocks = all(g.head_dim % 32 == 0 == g.v_head_dim % 32 for g in plan.model.cache_groups)
    plain = plan.tuning.kv_cache_dtype in (None, "f16")
    return "q8_0" if plain and blocks and plan.tuning.flash_attention is not False else None


LAYERS = Rung("gpu_layers", fewer_layers, frozenset({CrashCause.GPU_OOM}))
CONTEXT = Rung("max_model_len", halved("max_model_len", llama_fit.MIN_CONTEXT), _ANY)
BATCH = Rung("batch", halved("batch", _SMALLEST_BATCH), _ANY)
SLOTS = Rung("max_concurrency", halved("max_concurrency", 1), _ANY)
CACHE = Rung("kv_cache_dtype", _eight_bit_cache, _ANY)


def refit(plan: EnginePlan, server: Server) -> EnginePlan:
    """The same plan with its batch inside its context, and what it now takes."""
    tuning = plan.tuning
    context = tuning.max_model_len or llama_fit.MIN_CONTEXT
    tuning = tuning.model_copy(update={"batch": min(tuning.batch or context, context)})
    by_itself = server.auto_flash and tuning.flash_attention is None
    slots = (tuning.max_concurrency or 1) if server.slots > 1 else 1
    run = Run(
        context=llama_memory.cells(context) * slots,
        gpu_layers=tuning.gpu_layers or 0,
        devices=len(plan.gpus),
        shares=tuning.tensor_split,
        flash_attention=by_itself or bool(tuning.flash_attention),
        kv_dtype=tuning.kv_cache_dtype,
        ubatch=min(tuning.batch or llama_memory.UBATCH, llama_memory.UBATCH),
        sequences=slots,
        server=server,
    )
    host, cards = llama_memory.buffers(plan.model, run)
    after = tuple(
        old.model_copy(
            update={
                "weights": int(new.weights),
                "kv": int(new.kv),
                "activations": int(new.compute - new.idle),
            }
        )
        for old, new in zip(plan.estimate, [*cards, host], strict=False)
    )
    beside = int(llama_memory.host_overhead(plan.model, run))
    after = tuple(
        part.model_copy(update={"overhead": beside}) if part.device == "ram" else part
        for part in after
    )
    return plan.model_copy(update={"tuning": tuning, "estimate": after})
