"""PyTorch through our own server over the transformers library.

For what the other engines cannot load: fine-tuned checkpoints, LoRA adapters, weights that are
quantized while loading (bitsandbytes NF4 with double quantization, int8), and layers that are
offloaded to RAM. Its server program is `servers/pytorch_server.py`, started as a file in the
engine's own environment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from engine_launchers import naming, pytorch_fit
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
from engine_launchers.model import ModelFormat, ModelSpec
from engine_launchers.relaxing import Rung, first_rung, halved
from engine_launchers.series import SeriesRule
from engine_launchers.traits import SpeedTraits
from engine_launchers.watch import PhaseRule, WatchTraits

VERSION = "5.23.0"
SERVER = str(PurePath(__file__).parent / "servers" / "pytorch_server.py")
_FIELDS = frozenset(
    {
        *("model", "max_tokens", "temperature", "top_p", "min_p", "top_k", "seed", "n", "user"),
        *("stop", "stream", "stream_options", "ignore_eos", "repetition_penalty"),
        *("presence_penalty", "frequency_penalty"),
    }
)
# The server ends with one line that says what was wrong; the library's own words stand in it.
_CAUSES: tuple[tuple[CrashCause, re.Pattern[str]], ...] = (
    (CrashCause.PORT_TAKEN, re.compile(r"port: .*\[Errno 98\]")),
    (CrashCause.GPU_OOM, re.compile(r"CUDA out of memory|OutOfMemoryError|CUDA error: out of mem")),
    (
        CrashCause.HOST_OOM,
        re.compile(
            r"DefaultCPUAllocator: (can't|not enough)|MemoryError|Cannot allocate memory"
            r"|unable to mmap|std::bad_alloc"
        ),
    ),
    (CrashCause.KV_CACHE_TOO_SMALL, re.compile(r"ERROR: kv: ")),
    (
        CrashCause.BAD_FLAGS,
        re.compile(r"pytorch_server.py: error: |ERROR: max-model-len: |ERROR: device: "),
    ),
    (CrashCause.MODEL_INVALID, re.compile(r"ERROR: (model|adapter [^:]*): ")),
)
_INJECTED = ("--shutdown-timeout", "5")  # below the grace that a stop leaves
_FULL = frozenset({CrashCause.GPU_OOM, CrashCause.HOST_OOM, CrashCause.KV_CACHE_TOO_SMALL})
_RUNGS = (
    Rung("max_concurrency", halved("max_concurrency", 1), _FULL),
    Rung("max_model_len", halved("max_model_len", 512), _FULL),
)
_ENDINGS = {each: each for each in ("stop", "length", "cancelled", "failed")}
_SERIES = (
    SeriesRule(ours="requests_running", theirs="pytorch_engine_requests_running"),
    SeriesRule(ours="requests_waiting", theirs="pytorch_engine_requests_waiting"),
    SeriesRule(
        ours="kv_cache_used_ratio",
        theirs="pytorch_engine_kv_blocks_used",
        over="pytorch_engine_kv_blocks",
    ),
    SeriesRule(
        ours="requests_total",
        theirs="pytorch_engine_requests_finished_total",
        label="reason",
        words=_ENDINGS,
    ),
    SeriesRule(ours="prompt_tokens_total", theirs="pytorch_engine_prompt_tokens_total"),
    SeriesRule(ours="generated_tokens_total", theirs="pytorch_engine_generation_tokens_total"),
    SeriesRule(ours="steps_total", theirs="pytorch_engine_iterations_total"),
    SeriesRule(ours="ttft_seconds", theirs="pytorch_engine_time_to_first_token_seconds"),
)


class PyTorchLauncher:
    """The `pytorch` engine."""

    name: EngineName = "pytorch"
    version = VERSION
    routes = frozenset({"/v1/completions", "/v1/chat/completions"})
    formats: frozenset[ModelFormat] = frozenset({"safetensors"})
    quirks = Quirks(
        usage_on_request=True,
        completion_fields=_FIELDS | {"prompt"},
        chat_fields=_FIELDS | {"messages", "max_completion_tokens"},
    )
    speed = SpeedTraits(
        bandwidth_share={"16bit": 0.55, "8bit": 0.25, "4bit": 0.30},
        seconds_per_layer=2.5e-4,
        seconds_per_token=2.0e-3,
        compute_share=0.35,
        batching=True,
    )

    watch = WatchTraits(
        metrics_path="/metrics",
        counters=(
            "pytorch_engine_iterations_total",
            "pytorch_engine_generation_tokens_total",
            "pytorch_engine_prompt_tokens_total",
        ),
        phases=(
            PhaseRule(pattern=r"INFO: importing", name="importing the libraries", percent=2),
            PhaseRule(pattern=r"INFO: loading weights", name="loading weights", percent=30),
            PhaseRule(pattern=r"INFO: loading adapters", name="loading adapters", percent=80),
            PhaseRule(pattern=r"INFO: making the cache", name="making the cache", percent=85),
            PhaseRule(pattern=r"INFO: loaded in", name="making a first token", percent=98),
        ),
        series=_SERIES,
    )

    def fit(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        wish: Tuning,
        pinned: frozenset[str] = frozenset(),
    ) -> Fit | Rejection:
        """Weights on the freest GPU, then RAM; `wish.quantization` NF4 or INT8 packs them."""
        return pytorch_fit.fit(model, hardware, wish, pinned)

    def command(self, plan: EnginePlan, listen: Listen) -> LaunchSpec:
        """The server program of this engine, by its path, with the plan as flags."""
        tuning = plan.tuning
        packed = tuning.quantization if tuning.quantization in {"NF4", "INT8"} else None
        chosen: tuple[tuple[str, object], ...] = (
            ("--device", "cuda" if plan.gpus else "cpu"),
            ("--dtype", tuning.dtype),
            ("--quantization", packed.lower() if packed else None),
            ("--max-model-len", tuning.max_model_len),
            ("--max-num-seqs", tuning.max_concurrency),
            ("--block-size", pytorch_fit.BLOCK_TOKENS),
            ("--num-blocks", pytorch_fit.num_blocks(plan)),
            ("--max-batch-tokens", tuning.batch),
            ("--threads", tuning.threads),
            ("--cpu-offload-bytes", tuning.cpu_offload_bytes or None),
        )
        adapters = (
            word
            for adapter in plan.model.adapters
            for word in ("--adapter", f"{adapter.name}={adapter.path}")
        )
        argv = (
            *("{engine}", SERVER),
            *("--model", plan.model.source.removeprefix("hf://")),
            *("--served-model-name", plan.model.id),
            *("--host", listen.host, "--port", str(listen.port)),
            *(word for flag, value in chosen if value is not None for word in (flag, str(value))),
            *(("--compile",) if tuning.compile else ()),
            *adapters,
            *_INJECTED,
            *tuning.extra_args,
        )
        return LaunchSpec(
            argv=argv,
            env=plan.visible,
            listen=listen,
            injected=_INJECTED,
            files=(str(PurePath(SERVER).parent),),
        )

    def served(self, plan: EnginePlan) -> tuple[Served, ...]:
        """An adapter is asked for by its name."""
        return naming.served(plan, naming.by_name)

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """The first rule that matches, then the exit status."""
        return diagnosed(exit, tail, _CAUSES)

    def relax(self, plan: EnginePlan, cause: CrashCause) -> EnginePlan | None:
        """Fewer requests at a time, then a shorter context."""
        return first_rung(plan, cause, _RUNGS, pytorch_fit.refit)
