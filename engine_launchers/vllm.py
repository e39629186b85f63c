"""vLLM through `vllm serve` (0.32.0): which cards and artefacts it takes, and how it is sized.

Facts about this version that are held here as rules: no bitsandbytes and no GGUF any more; NVIDIA
from compute capability 7.5, BF16 from 8.0, FP8 from 8.9; no Windows; heads must divide by the
tensor parallel size; hybrid models must not have more sequences than state blocks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from engine_launchers import naming, vllm_fit, vllm_rules
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
from engine_launchers.traits import SpeedTraits, TokenizerTraits
from engine_launchers.vllm_watch import WATCH

VERSION = "0.32.0"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_FIELDS = frozenset(
    {
        *("model", "stream", "stream_options", "max_tokens", "min_tokens", "stop", "seed", "user"),
        *("temperature", "top_p", "top_k", "min_p", "n", "logit_bias", "ignore_eos"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "response_format"),
    }
)
_VITAL = ("VLLM::EngineCore", "VLLM::Worker")
_DRAIN_S = 5  # for running requests after a TERM; with 0 and a request in flight vLLM never exits
_STEP_S, _STEP_CPU_S = 60, 120  # a step that takes longer hangs: 2048 tokens of 7B take 75 s in RAM
_START_S = 3600  # the supervisor has its own limit
_CAUSES: tuple[tuple[CrashCause, re.Pattern[str]], ...] = (
    (CrashCause.PORT_TAKEN, re.compile(r"\[Errno 98\] Address already in use")),
    (CrashCause.WRONG_BUILD, re.compile(r"died unexpectedly \(exit code: -4\)")),
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
    routes = frozenset({
        "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/responses", "/v1/embeddings", "/v1/rerank",
    })  # fmt: skip
    formats: frozenset[ModelFormat] = frozenset({"safetensors"})
    quirks = Quirks(
        tokenizer=TokenizerTraits(),
        usage_on_request=True,
        completion_fields=_FIELDS | {"prompt"},
        chat_fields=_FIELDS | {"messages", "tools", "tool_choice", "parallel_tool_calls"},
    )
    watch = WATCH
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
        """`vllm serve` with every flag that the plan decides said aloud.

        A key is no part of a plan: whoever starts this may put it into `env` as VLLM_API_KEY. It
        guards /v1 only, so the address stays on loopback all the same. Compiled graphs are kept in
        vLLM's own cache folder, which every start shares.
        """
        tuning, injected = plan.tuning, _injected(plan)
        argv = (
            *("{engine}", "serve", plan.model.source.removeprefix("hf://")),
            *("--served-model-name", plan.model.id),
            *("--host", listen.host, "--port", str(listen.port)),
            *(w for flag, value in _chosen(plan) if value is not None for w in (flag, str(value))),
            *_lora(plan),
            *injected,
            *tuning.extra_args,
        )
        return LaunchSpec(
            argv=argv, env=_environment(plan), listen=listen, injected=injected, vital=_VITAL
        )

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
        return first_rung(plan, cause, _RUNGS, lambda plan: vllm_fit.refit(plan, cause))


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


def _chosen(plan: EnginePlan) -> tuple[tuple[str, object], ...]:
    """Flags and what the plan decided; None where it leaves the engine's default."""
    tuning, on_gpu = plan.tuning, bool(plan.gpus)
    return (
        ("--tensor-parallel-size", tuning.tensor_parallel),
        ("--pipeline-parallel-size", _above_one(tuning.pipeline_parallel)),
        ("--gpu-memory-utilization", tuning.gpu_memory_fraction),
        ("--max-model-len", tuning.max_model_len or ("auto" if on_gpu else None)),
        ("--max-num-seqs", tuning.max_concurrency),
        ("--max-num-batched-tokens", tuning.batch),
        ("--dtype", tuning.dtype),
        ("--quantization", _online(plan)),
        ("--kv-cache-dtype", tuning.kv_cache_dtype),
        ("--kv-cache-memory-bytes", None if on_gpu else _ram_cache(plan)),
        ("--cpu-offload-gb", _whole_gib(tuning.cpu_offload_bytes)),
    )


def _injected(plan: EnginePlan) -> tuple[str, ...]:
    """What is right for every plan on this kind of machine.

    On the processor compiled graphs are left out: a start takes twice as long with them.
    Only safetensors are read: a pickled weight file could run code.
    """
    words = ["--shutdown-timeout", str(_DRAIN_S), "--load-format", "safetensors"]
    words += ["--disable-access-log-for-endpoints", "/health,/metrics"]
    if not plan.model.hybrid:
        words += ["--enable-prefix-caching"]
    if not plan.gpus:
        words += ["--enforce-eager"]
    elif plan.tuning.sleep:
        words += ["--enable-sleep-mode"]
    return tuple(words)


def _environment(plan: EnginePlan) -> dict[str, str]:
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(_STEP_S if plan.gpus else _STEP_CPU_S),
        "VLLM_ENGINE_READY_TIMEOUT_S": str(_START_S),
    }
    if not plan.model.source.startswith("hf://"):
        env["HF_HUB_OFFLINE"] = "1"
    if plan.gpus and plan.tuning.sleep:  # without it there is no way to ask for sleep
        env["VLLM_SERVER_DEV_MODE"] = "1"
    return env | _threads(plan) | plan.visible


def _threads(plan: EnginePlan) -> dict[str, str]:
    """Where threads run. Left alone, one worker keeps a core free for the scheduler.

    Several workers get a range of cores each, for vLLM's own division goes by memory nodes. A
    number that a person set is kept; unbound threads were 17 times slower beside others.
    """
    tuning = plan.tuning
    pinned = tuning.threads is not None and "threads" in plan.pinned
    if plan.gpus:
        return {"OMP_NUM_THREADS": str(tuning.threads)} if pinned else {}
    ranks = tuning.tensor_parallel or 1
    if ranks == 1 and not pinned:
        return {}
    return {"VLLM_CPU_OMP_THREADS_BIND": core_ranges(tuning.threads or ranks, ranks)}


def core_ranges(cores: int, ranks: int) -> str:
    """The cores from 0 on in equal shares: "0-1|2-3" for four cores and two ranks."""
    each = max(1, cores // ranks)
    firsts = (rank * each for rank in range(ranks))
    return "|".join(str(at) if each == 1 else f"{at}-{at + each - 1}" for at in firsts)


def _lora(plan: EnginePlan) -> tuple[str, ...]:
    """All adapters, and room for all of them in one batch."""
    adapters = plan.model.adapters
    if not adapters:
        return ()
    rank = max(plan.tuning.lora_rank or 1, *(adapter.rank for adapter in adapters))
    return (
        *("--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(_rank(rank))),
        *("--lora-modules", *map(_named, adapters)),
    )


def _online(plan: EnginePlan) -> str | None:
    """FP8 that is made while a 16-bit artefact is loaded; quantized ones say themselves what."""
    wanted, stored = plan.tuning.quantization, plan.model.quantization
    return "fp8" if wanted == "FP8" and stored in vllm_rules.SIXTEEN else None


def _above_one(value: int | None) -> int | None:
    return value if value and value > 1 else None


def _whole_gib(size: int | None) -> int | None:
    return math.ceil(size / 2**30) if size else None


def _rank(rank: int) -> int:
    """The next rank that the flag takes: 24 would be refused, 32 holds it."""
    return next((known for known in _LORA_RANKS if known >= rank), rank)


def _named(adapter: Adapter) -> str:
    """An adapter as the flag takes it; as JSON where a comma would be read as the start of that."""
    if "," in adapter.name + adapter.path or "=" in adapter.name:
        return json.dumps({"name": adapter.name, "path": adapter.path})
    return f"{adapter.name}={adapter.path}"


def _ram_cache(plan: EnginePlan) -> int | None:
    """Bytes of cache on each rank."""
    ranks = plan.tuning.tensor_parallel or 1
    return plan.estimate[0].kv // ranks if plan.estimate else None
