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

from engine_launchers import llama_fit, llama_rungs, llama_traits, llama_watch, naming
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
from engine_launchers.llama_memory import PYTHON
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelFormat, ModelSpec
from engine_launchers.relaxing import first_rung
from engine_launchers.traits import TokenizerTraits

VERSION = "0.3.36"
_RUNGS = (llama_rungs.LAYERS, llama_rungs.CONTEXT, llama_rungs.BATCH)
_GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}

_COMMON_FIELDS = frozenset(
    {
        *("model", "max_tokens", "min_tokens", "temperature", "top_p", "min_p", "top_k", "n"),
        *("stop", "stream", "stream_options", "presence_penalty", "frequency_penalty", "seed"),
        *("logit_bias", "user", "repeat_penalty", "mirostat_mode", "mirostat_tau", "mirostat_eta"),
    }
)

_TAIL_RULES: tuple[tuple[CrashCause, re.Pattern[str]], ...] = (
    (CrashCause.PORT_TAKEN, re.compile(r"\[Errno 98\] error while attempting to bind")),
    *llama_traits.OUT_OF_MEMORY,
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
    formats: frozenset[ModelFormat] = frozenset({"gguf"})
    quirks = Quirks(
        tokenizer=TokenizerTraits(
            tokenize="/extras/tokenize",
            detokenize="/extras/detokenize",
            asks="input",
            special=None,
            tells="text",
        ),
        liveness_path="/docs",
        tokenize_path="/extras/tokenize/count",
        repetition_field="repeat_penalty",
        completion_fields=_COMMON_FIELDS | {"prompt"},
        chat_fields=_COMMON_FIELDS
        | {"messages", "functions", "function_call", "tools", "tool_choice", "response_format"},
    )

    speed = llama_traits.SPEED
    watch = llama_watch.PYTHON

    def fit(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        wish: Tuning,
        pinned: frozenset[str] = frozenset(),
    ) -> Fit | Rejection:
        """Layers on as many GPUs as the profile has, the rest in RAM; one request at a time."""
        if len(model.adapters) > 1:
            why = (
                f"applies one adapter to every request, the model has {len(model.adapters)}: "
                "llama_server changes them by request"
            )
            return Rejection(
                what=self.name, why=why, need=len(model.adapters), have=1, unit="adapters"
            )
        found = llama_fit.fit(self.name, model, hardware, wish, pinned)
        if isinstance(found, Rejection):
            return found
        serial = "one request at a time: the server holds one lock around the model"
        always = tuple(
            f"every request gets the adapter {each.name}: it is applied when the model is loaded"
            for each in model.adapters
        )
        return found.model_copy(update={"reasons": (*found.reasons, serial, *always)})

    def command(self, plan: EnginePlan, listen: Listen) -> LaunchSpec:
        """`python -m llama_cpp.server` with every flag that matters said aloud."""
        tuning = plan.tuning
        chosen = (
            ("--n_ctx", tuning.max_model_len),
            ("--n_batch", tuning.batch),
            ("--n_threads", tuning.threads),
            ("--n_threads_batch", tuning.threads),
            ("--n_gpu_layers", tuning.gpu_layers),
            ("--flash_attn", "true" if tuning.flash_attention else None),
            ("--type_k", _GGML_TYPES.get(tuning.kv_cache_dtype or "")),
            ("--type_v", _GGML_TYPES.get(tuning.kv_cache_dtype or "")),
            ("--lora_path", next((each.path for each in plan.model.adapters), None)),
        )
        injected = (
            *("--interrupt_requests", "false"),
            *("--use_mmap", "false", "--use_mlock", "false"),
            *("--logits_all", "false"),
        )
        argv = (
            *("{engine}", "-m", "llama_cpp.server"),
            *("--model", plan.model.source, "--model_alias", plan.model.id),
            *("--host", listen.host, "--port", str(listen.port)),
            *(w for flag, value in chosen if value is not None for w in (flag, str(value))),
            *(("--tensor_split", *map(str, tuning.tensor_split)) if tuning.tensor_split else ()),
            *injected,
            *tuning.extra_args,
        )
        return LaunchSpec(argv=argv, env=plan.visible, listen=listen, injected=injected)

    def served(self, plan: EnginePlan) -> tuple[Served, ...]:
        """One adapter at most, which every name means; the server ignores names."""
        adapters = tuple(a.model_copy(update={"always": True}) for a in plan.model.adapters)
        model = plan.model.model_copy(update={"adapters": adapters})
        named = plan.model_copy(update={"model": model})
        return naming.served(named, lambda plan, at, adapter: (plan.model.id, {}))

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """The first rule that matches, then the exit status.

        uvicorn re-raises SIGTERM, so a graceful end is -15; whether it was asked for is the
        caller's knowledge.
        """
        return diagnosed(exit, tail, _TAIL_RULES)

    def relax(self, plan: EnginePlan, cause: CrashCause) -> EnginePlan | None:
        """Fewer layers on the GPU, a shorter context, a smaller batch; None at the end."""
        if not cause.needs_smaller_plan:
            return None
        return first_rung(plan, cause, _RUNGS, lambda smaller: llama_rungs.refit(smaller, PYTHON))
