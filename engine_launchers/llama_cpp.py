"""llama.cpp through `python -m llama_cpp.server` (llama-cpp-python 0.3.36).

Serial by nature: one lock around the model. What was measured on this version and is held here as
flags and data: `interrupt_requests` defaults to true and lets any second request, even
`GET /v1/models`, end the running stream with a bare `[DONE]`; unset flags are filled from the
environment, where `PORT` beats `--port`; weights are repacked, so mmap and mlock hold them twice;
`logits_all` allocates context times vocabulary; there is no `/health`, but `/docs` answers without
the lock; streams carry no usage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine_launchers.base import (
    CrashCause,
    EngineName,
    EnginePlan,
    EngineRequirement,
    ExitResult,
    Fit,
    LaunchSpec,
    Listen,
    MemoryEstimate,
    Quirks,
    Rejection,
    Tuning,
)
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec

VERSION = "0.3.36"
MIN_CONTEXT = 512
_RAM_MARGIN = 0.95  # share of the available RAM that a plan may take
_OVERHEAD = 110 * 1024 * 1024  # interpreter, server and libraries: measured RSS before weights
_SIGILL = 4
_KV_BYTES = 2  # f16 cache: bytes per element

_COMMON_FIELDS = frozenset(
    {
        *("model", "max_tokens", "min_tokens", "temperature", "top_p", "min_p", "top_k", "n"),
        *("stop", "stream", "stream_options", "presence_penalty", "frequency_penalty", "seed"),
        *("logit_bias", "user", "repeat_penalty", "mirostat_mode", "mirostat_tau", "mirostat_eta"),
    }
)

_TAIL_RULES: tuple[tuple[CrashCause, re.Pattern[str]], ...] = (
    (CrashCause.PORT_TAKEN, re.compile(r"\[Errno 98\] error while attempting to bind")),
    (
        CrashCause.GPU_OOM,
        re.compile(r"cudaMalloc failed: out of memory|CUDA error: out of memory|ErrorOutOfDevice"),
    ),
    (
        CrashCause.HOST_OOM,
        re.compile(r"std::bad_alloc|failed to allocate .*buffer|Cannot allocate memory"),
    ),
    (CrashCause.KV_CACHE_TOO_SMALL, re.compile(r"Failed to create llama_context")),
    (
        CrashCause.MODEL_INVALID,
        re.compile(
            r"Model path does not exist|Failed to load model from file|invalid magic characters"
            r"|failed to read (magic|key-value pairs|header)|not within the file bounds"
            r"|llama_adapter_lora_init: failed to open"
        ),
    ),
    (
        CrashCause.BAD_FLAGS,
        re.compile(r"error: unrecognized arguments|error: argument --|validation errors? for"),
    ),
)


class LlamaCppLauncher:
    """The `llama_cpp` engine."""

    name: EngineName = "llama_cpp"
    version = VERSION
    routes = frozenset({"/v1/completions", "/v1/chat/completions"})
    quirks = Quirks(
        liveness_path="/docs",
        tokenize_path="/extras/tokenize/count",
        repetition_field="repeat_penalty",
        completion_fields=_COMMON_FIELDS | {"prompt"},
        chat_fields=_COMMON_FIELDS
        | {"messages", "functions", "function_call", "tools", "tool_choice", "response_format"},
    )

    def requirement(self, hardware: HardwareProfile) -> EngineRequirement:
        """The package, built from source for this processor.

        The multimodal library is left out, nothing here uses it. On processors with AMX those
        kernels are left out: compiled by current GCC they end in SIGILL (measured with GCC 12.2;
        llama.cpp pull request 26954 names the cause).
        """
        build = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}
        if "AMX" in hardware.isa:
            native = "-march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
            build["CMAKE_ARGS"] += " -DGGML_NATIVE=OFF"
            build |= {"CFLAGS": native, "CXXFLAGS": native}
        return EngineRequirement(
            engine=self.name,
            version=VERSION,
            packages=(f"llama-cpp-python[server]=={VERSION}",),
            built_for=hardware.isa,
            build_env=build,
            check=("{python}", "-c", "import llama_cpp.server.app"),
        )

    def fit(self, model: ModelSpec, hardware: HardwareProfile, wish: Tuning) -> Fit | Rejection:
        """CPU fit: weights, KV cache and overhead against the available RAM.

        The context is halved, down to MIN_CONTEXT, until it fits; the planner refuses the result
        where the context was pinned.
        """
        if model.format != "gguf":
            return Rejection(what=self.name, why=f"reads GGUF files, this is {model.format}")
        reasons: list[str] = []
        context = min(wish.max_model_len or model.context_max, model.context_max)
        if wish.max_model_len and wish.max_model_len > model.context_max:
            reasons.append(f"context {context}: all that the model was trained for")
        budget = int(hardware.ram_available * _RAM_MARGIN)
        estimate = self._estimate(model, context)
        while estimate.total > budget and context // 2 >= MIN_CONTEXT:
            context //= 2
            estimate = self._estimate(model, context)
            reasons.append(f"context halved to {context}: more does not fit {_mib(budget)} of RAM")
        if estimate.total > budget:
            why = f"needs {_mib(estimate.total)} of RAM, {_mib(budget)} may be used"
            return Rejection(what=self.name, why=why)
        threads = wish.threads or hardware.cpu_cores
        reasons.append(f"threads {threads}: usable physical cores are {hardware.cpu_cores}")
        reasons.append("one request at a time: the server holds one lock around the model")
        batch = min(wish.batch or 512, context)
        tuning = wish.model_copy(
            update={
                "max_model_len": context,
                "max_concurrency": 1,
                "threads": threads,
                "batch": batch,
                "quantization": model.quantization,
                "gpu_layers": 0,
                "tensor_parallel": None,
                "gpu_memory_fraction": None,
            }
        )
        return Fit(tuning=tuning, estimate=(estimate,), reasons=tuple(reasons))

    def _estimate(self, model: ModelSpec, context: int) -> MemoryEstimate:
        kv = 2 * model.layers * model.kv_heads * model.head_dim * context * _KV_BYTES
        compute = 4 * 512 * (model.vocab or 32_000) + 2 * 4 * 512 * model.heads * model.head_dim
        return MemoryEstimate(
            device="ram",
            weights=model.weight_bytes,
            kv=kv,
            activations=compute,
            overhead=_OVERHEAD,
        )

    def command(self, plan: EnginePlan, listen: Listen) -> LaunchSpec:
        """`python -m llama_cpp.server` with every flag that matters said aloud."""
        tuning = plan.tuning
        chosen = (
            ("--n_ctx", tuning.max_model_len),
            ("--n_batch", tuning.batch),
            ("--n_threads", tuning.threads),
            ("--n_threads_batch", tuning.threads),
            ("--n_gpu_layers", tuning.gpu_layers),
        )
        injected = (
            *("--interrupt_requests", "false"),
            *("--use_mmap", "false", "--use_mlock", "false"),
            *("--logits_all", "false"),
        )
        argv = (
            *("{python}", "-m", "llama_cpp.server"),
            *("--model", plan.model.source, "--model_alias", plan.model.id),
            *("--host", listen.host, "--port", str(listen.port)),
            *(w for flag, value in chosen if value is not None for w in (flag, str(value))),
            *injected,
            *tuning.extra_args,
        )
        return LaunchSpec(argv=argv, listen=listen, injected=injected)

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """The first rule that matches, then the exit status.

        uvicorn re-raises SIGTERM, so a graceful end is -15; whether it was asked for is the
        caller's knowledge.
        """
        if exit.oom_killed:
            return CrashCause.HOST_OOM
        text = "\n".join(tail)
        for cause, pattern in _TAIL_RULES:
            if pattern.search(text) and exit.code not in (0, None):
                return cause
        if exit.signal is not None:
            return CrashCause.WRONG_BUILD if exit.signal == _SIGILL else CrashCause.KILLED
        if exit.code == 2:
            return CrashCause.BAD_FLAGS
        return CrashCause.EXIT_UNREQUESTED if exit.code == 0 else CrashCause.UNKNOWN

    def relax(self, plan: EnginePlan, cause: CrashCause) -> EnginePlan | None:
        """Halve the context, then the batch; None when both are pinned or small."""
        if not cause.needs_smaller_plan:
            return None
        tuning = plan.tuning
        context, batch = tuning.max_model_len or 0, tuning.batch or 0
        if "max_model_len" not in plan.pinned and context // 2 >= MIN_CONTEXT:
            change = {"max_model_len": context // 2, "batch": min(batch, context // 2) or None}
            reason = f"context {context} -> {context // 2} after {cause.value}"
        elif "batch" not in plan.pinned and batch // 2 >= 64:
            change = {"batch": batch // 2}
            reason = f"batch {batch} -> {batch // 2} after {cause.value}"
        else:
            return None
        smaller = tuning.model_copy(update=change)
        return plan.model_copy(
            update={
                "tuning": smaller,
                "rung": plan.rung + 1,
                "reasons": (*plan.reasons, reason),
                "estimate": (self._estimate(plan.model, smaller.max_model_len or MIN_CONTEXT),),
            }
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
