"""vLLM through `vllm serve` (0.32.0): which cards and artefacts it takes, and how it is sized.

Facts about this version that are held here as rules: no bitsandbytes and no GGUF any more; NVIDIA
from compute capability 7.5, BF16 from 8.0, FP8 from 8.9; no Windows; heads must divide by the
tensor parallel size; hybrid models must not have more sequences than state blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from engine_launchers import naming, vllm_fit
from engine_launchers.base import (
    CrashCause,
    EngineName,
    EnginePlan,
    ExitResult,
    Fit,
    LaunchSpec,
    Listen,
    Quirks,
    Rejection,
    Served,
    Tuning,
)
from engine_launchers.diagnosing import diagnosed
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import Adapter, ModelFormat, ModelSpec
from engine_launchers.relaxing import Rung, first_rung, halved
from engine_launchers.traits import SpeedTraits

VERSION = "0.32.0"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_CAUSES: tuple[tuple[CrashCause, re.Pattern[str]], ...] = (
    (CrashCause.PORT_TAKEN, re.compile(r"\[Errno 98\] Address already in use")),
    (
        CrashCause.KV_CACHE_TOO_SMALL,
        re.compile(
            r"No available memory for the cache blocks|To serve at least one request with"
            r"|is larger than the maximum number of tokens that can be stored in KV cache"
            r"|exceeds available Mamba cache blocks"
        ),
    ),
    (
        CrashCause.GPU_OOM,
        re.compile(r"CUDA out of memory|OutOfMemoryError|Free memory on device .* on startup"),
    ),
    (
        CrashCause.HOST_OOM,
        re.compile(
            r"DefaultCPUAllocator: can't allocate memory|Available memory on node \d+ .* is less"
        ),
    ),
    (
        CrashCause.BAD_FLAGS,
        re.compile(
            r"error: unrecognized arguments|Unknown quantization method|error: argument --"
            r"|must be divisible by tensor parallel size|is greater than the derived max_model_len"
            r"|LoRA rank \d+ is greater than max_lora_rank"
        ),
    ),
    (
        CrashCause.MODEL_INVALID,
        re.compile(
            r"HFValidationError|LocalEntryNotFoundError|is not a valid JSON file"
            r"|Cannot find the config file|No adapter found"
        ),
    ),
)


class VllmLauncher:
    """The `vllm` engine."""

    name: EngineName = "vllm"
    version = VERSION
    routes = frozenset({"/v1/completions", "/v1/chat/completions"})
    formats: frozenset[ModelFormat] = frozenset({"safetensors"})
    quirks = Quirks()
    # An L4 reached 90 % of its bandwidth with 16-bit weights, 84 % with FP8, 68 % with 4 bit.
    speed = SpeedTraits(
        bandwidth_share={"16bit": 0.90, "8bit": 0.84, "4bit": 0.68},
        seconds_per_layer=2.0e-5,
        compute_share=0.5,
        batching=True,
        splits_layers=True,
    )

    def fit(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        wish: Tuning,
        pinned: frozenset[str] = frozenset(),
    ) -> Fit | Rejection:
        """Tensor and pipeline parallel over all GPUs of the profile; in RAM where it has none."""
        return vllm_fit.fit(model, hardware, wish, pinned)

    def command(self, plan: EnginePlan, listen: Listen) -> LaunchSpec:
        """`vllm serve` with every flag that the plan decides said aloud."""
        tuning = plan.tuning
        chosen: tuple[tuple[str, object], ...] = (
            ("--tensor-parallel-size", tuning.tensor_parallel),
            ("--pipeline-parallel-size", _above_one(tuning.pipeline_parallel)),
            ("--gpu-memory-utilization", tuning.gpu_memory_fraction),
            ("--max-model-len", tuning.max_model_len),
            ("--max-num-seqs", tuning.max_concurrency),
            ("--max-num-batched-tokens", tuning.batch),
            ("--dtype", tuning.dtype),
            ("--kv-cache-dtype", tuning.kv_cache_dtype),
            ("--kv-cache-memory-bytes", None if plan.gpus else _ram_cache(plan)),
            ("--max-lora-rank", _rank(tuning.lora_rank)),
            ("--cpu-offload-gb", _whole_gib(tuning.cpu_offload_bytes)),
        )
        adapters = plan.model.adapters
        lora = ("--enable-lora", "--lora-modules", *map(_named, adapters)) if adapters else ()
        argv = (
            *("{engine}", "-m", "vllm.entrypoints.cli.main", "serve"),
            plan.model.source.removeprefix("hf://"),
            *("--served-model-name", plan.model.id),
            *("--host", listen.host, "--port", str(listen.port)),
            *(word for flag, value in chosen if value is not None for word in (flag, str(value))),
            *lora,
            *tuning.extra_args,
        )
        env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_COLOR": "0"}
        env |= _threads(plan) | plan.visible
        return LaunchSpec(argv=argv, env=env, listen=listen)

    def served(self, plan: EnginePlan) -> tuple[Served, ...]:
        """An adapter is asked for by its name."""
        return naming.served(plan, naming.by_name)

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """The first rule that matches; code 0 unasked is a failure too: so ends a dead worker."""
        return diagnosed(exit, tail, _CAUSES)

    def relax(self, plan: EnginePlan, cause: CrashCause) -> EnginePlan | None:
        """Fewer sequences and tokens a step against a full card; a shorter context for the cache.

        The last rung leaves more of the card alone, for what vLLM does not count.
        """
        return first_rung(plan, cause, _RUNGS, vllm_fit.refit)


_FULL = frozenset({CrashCause.GPU_OOM, CrashCause.HOST_OOM})
_SMALL_CACHE = frozenset({CrashCause.KV_CACHE_TOO_SMALL})


def _less_of_the_card(plan: EnginePlan) -> float | None:
    share = plan.tuning.gpu_memory_fraction
    if not share:
        return None
    less = round(share - 0.05, 2)
    tuning = plan.tuning.model_copy(update={"gpu_memory_fraction": less})
    smaller = vllm_fit.refit(plan.model_copy(update={"tuning": tuning}))
    return less if less > 0 and vllm_fit.holds(smaller) else None


_RUNGS = (
    Rung("max_concurrency", halved("max_concurrency", 8), _FULL | _SMALL_CACHE),
    Rung("batch", halved("batch", 512), _FULL | _SMALL_CACHE),
    Rung("gpu_memory_fraction", _less_of_the_card, _FULL),
    Rung("max_model_len", halved("max_model_len", 512), _FULL | _SMALL_CACHE),
)


def _threads(plan: EnginePlan) -> dict[str, str]:
    """Threads that a person asked for; otherwise vLLM binds its own, which is faster."""
    if plan.tuning.threads is None or "threads" not in plan.pinned:
        return {}
    count = {"OMP_NUM_THREADS": str(plan.tuning.threads)}
    return count if plan.gpus else {**count, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _above_one(value: int | None) -> int | None:
    return value if value and value > 1 else None


def _whole_gib(size: int | None) -> int | None:
    return math.ceil(size / 2**30) if size else None


def _rank(rank: int | None) -> int | None:
    """The next rank that the flag takes: 24 would be refused, 32 holds it."""
    return next((known for known in _LORA_RANKS if known >= rank), rank) if rank else None


def _named(adapter: Adapter) -> str:
    """An adapter as the flag takes it."""
    return f"{adapter.name}={adapter.path}"


def _ram_cache(plan: EnginePlan) -> int | None:
    return plan.estimate[0].kv if plan.estimate else None
