"""llama.cpp through its own server, `llama-server`, built from the sources that llama-cpp-python
0.3.36 carries (0.5.0-dev, commit 0c1e570).

It batches requests in slots. What was measured on this version and is held here as flags and data:
`-c` is the total over all slots, and each slot's share is rounded up to 256 tokens, so that only
`--kv-unified-per-slot` makes a slot's limit the promised one; one unified cache would let a long
request take what others were promised; weights are repacked, so mmap holds them twice; the prompt
cache in RAM defaults to 8 GiB, and may bring back a prompt that another adapter has computed;
unset flags are filled from `LLAMA_ARG_*`; any web page may read its answers unless the allowed
origins are named; chats tell their usage only when asked to. A request that names no adapter gets
the first one, `--lora-init-without-apply` or not, on top of what the slot has cached for the
request before: the model's own name is sent with every adapter at scale 0. A flag that is given
twice counts once, so that several adapters are one list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import JsonValue

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
from engine_launchers.llama_memory import NATIVE
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import Adapter, ModelFormat, ModelSpec
from engine_launchers.relaxing import first_rung
from engine_launchers.traits import TokenizerTraits

VERSION = "0.3.36"
_RUNGS = (
    llama_rungs.LAYERS,
    llama_rungs.SLOTS,
    llama_rungs.CONTEXT,
    llama_rungs.BATCH,
    llama_rungs.CACHE,
)
# Fields that its request schema knows; what it does not know it would ignore without a word.
_COMMON_FIELDS = frozenset(
    {
        *("model", "max_tokens", "temperature", "top_p", "min_p", "top_k", "n", "stop", "stream"),
        *("stream_options", "presence_penalty", "frequency_penalty", "repeat_penalty", "seed"),
        *("logit_bias", "user", "ignore_eos"),
    }
)

_TAIL_RULES: tuple[tuple[CrashCause, re.Pattern[str]], ...] = (
    (CrashCause.PORT_TAKEN, re.compile(r"couldn't bind HTTP server socket")),
    *llama_traits.OUT_OF_MEMORY,
    (
        CrashCause.MODEL_INVALID,
        re.compile(
            r"failed to open GGUF file|invalid magic characters|not within the file bounds"
            r"|failed to read (magic|key-value pairs|header)|failed to load lora adapter"
            r"|error loading model"
        ),
    ),
    (CrashCause.BAD_FLAGS, re.compile(r"^error(: | while handling)|requires flash_attn", re.M)),
    (CrashCause.KV_CACHE_TOO_SMALL, re.compile(r"failed to create context")),
)


class LlamaServerLauncher:
    """The `llama_server` engine."""

    name: EngineName = "llama_server"
    version = VERSION
    routes = frozenset({
        "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/responses", "/v1/embeddings", "/v1/rerank",
    })  # fmt: skip
    formats: frozenset[ModelFormat] = frozenset({"gguf"})
    quirks = Quirks(
        tokenizer=TokenizerTraits(asks="content", special="add_special", tells="content"),
        liveness_path="/health",
        usage_on_request=True,
        repetition_field="repeat_penalty",
        completion_fields=_COMMON_FIELDS | {"prompt"},
        chat_fields=_COMMON_FIELDS | {"messages", "tools", "tool_choice", "response_format"},
    )

    watch = llama_watch.NATIVE
    # Requests share the weights that are read: on a CPU
    # with two cores a 7B model in Q4_K_M came to 8.45 tokens/s for one stream and 12.4 for four.
    speed = llama_traits.SPEED.model_copy(update={"batching": True})

    def fit(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        wish: Tuning,
        pinned: frozenset[str] = frozenset(),
    ) -> Fit | Rejection:
        """Layers on as many GPUs as the profile has, the rest in RAM; slots in what is left."""
        return llama_fit.fit(self.name, model, hardware, wish, pinned, NATIVE)

    def command(self, plan: EnginePlan, listen: Listen) -> LaunchSpec:
        """`llama-server` with every flag that matters said aloud."""
        tuning = plan.tuning
        slots = tuning.max_concurrency or 1
        context = tuning.max_model_len
        kept = NATIVE.checkpoints if _rolls_back_badly(plan.model) else 0
        chosen: tuple[tuple[str, object], ...] = (
            ("-c", context and context * slots),
            ("--kv-unified-per-slot", context),
            ("-np", slots),
            ("-b", tuning.batch),
            ("-ub", tuning.batch and min(tuning.batch, llama_fit.UBATCH)),
            ("-t", tuning.threads),
            ("-tb", tuning.threads),
            ("-ngl", _layers(tuning.gpu_layers) if plan.gpus else None),
            ("-sm", "layer" if len(plan.gpus) > 1 else None),
            ("-ts", ",".join(map(str, tuning.tensor_split)) or None),
            ("-fa", _flash(tuning)),
            ("-ctk", tuning.kv_cache_dtype),
            ("-ctv", tuning.kv_cache_dtype),
            ("--lora", ",".join(_quoted(each.path) for each in plan.model.adapters) or None),
        )
        injected = (
            *("-cb", "--no-kv-unified", "--no-context-shift"),
            *("--fit", "off", "-lm", "none"),
            *("--cache-ram", "0", "--no-cache-idle-slots", "--ctx-checkpoints", str(kept)),
            *("--metrics", "--no-slots", "--no-ui", "--offline", "--cors-origins", "localhost"),
            *("--timeout", "3600", "--reasoning-format", "none", "--log-colors", "off"),
            *(("--lora-init-without-apply",) if plan.model.adapters else ()),
        )
        argv = (
            "{engine}",
            *("-m", plan.model.source, "--alias", plan.model.id),
            *("--host", listen.host, "--port", str(listen.port)),
            *(word for flag, value in chosen if value is not None for word in (flag, str(value))),
            *injected,
            *tuning.extra_args,
        )
        return LaunchSpec(argv=argv, env=plan.visible, listen=listen, injected=injected)

    def served(self, plan: EnginePlan) -> tuple[Served, ...]:
        """The server ignores names: an adapter is asked for by its number, with scale 1."""
        off: dict[str, JsonValue] = {"lora": [_scaled(at, 0.0) for at in _numbers(plan)]}
        return naming.served(plan, _by_number, off if plan.model.adapters else {})

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """The first rule that matches, then the exit status; all failures to start are code 1."""
        return diagnosed(exit, tail, _TAIL_RULES)

    def relax(self, plan: EnginePlan, cause: CrashCause) -> EnginePlan | None:
        """Fewer layers on the GPU, fewer slots, a shorter context, a smaller batch, an 8-bit cache.

        None at the end.
        """
        if not cause.needs_smaller_plan:
            return None
        return first_rung(plan, cause, _RUNGS, lambda smaller: llama_rungs.refit(smaller, NATIVE))


def _numbers(plan: EnginePlan) -> range:
    return range(len(plan.model.adapters))


def _scaled(at: int, scale: float) -> JsonValue:
    return {"id": at, "scale": scale}


def _by_number(plan: EnginePlan, at: int, adapter: Adapter) -> naming.Call:
    return plan.model.id, {"lora": [_scaled(at, 1.0)]}


def _layers(layers: int | None) -> str | None:
    """As the flag takes it: to the server, -1 means as many as it likes."""
    if layers is None:
        return None
    return "all" if layers < 0 else str(layers)


def _flash(tuning: Tuning) -> str:
    """On, off, or the server's own choice; a cache of fewer than 16 bits does not work without."""
    if tuning.flash_attention is not None:
        return "on" if tuning.flash_attention else "off"
    return "auto" if tuning.kv_cache_dtype in (None, "f16", "f32", "bf16") else "on"


def _rolls_back_badly(model: ModelSpec) -> bool:
    """Whether a prompt can be taken up again from a checkpoint only."""
    return any(group.kind in {"state", "sliding"} for group in model.cache_groups)


def _quoted(path: str) -> str:
    """A path for a list that is separated by commas."""
    return f'"{path.replace(chr(34), chr(34) * 2)}"' if set(path) & {",", '"'} else path
