"""The nouns that every part of Engine Room shares, and the Launcher protocol.

Everything here is a value: frozen, printable as JSON (`plan --json`), and stored with every running
engine. Sizes are bytes and times are seconds unless a name says otherwise. The machine's nouns are
in `machine`, the model's in `model`. Nothing here does I/O.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, Protocol

from pydantic import Field, JsonValue

from engine_launchers.container import Container
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelFormat, ModelSpec
from engine_launchers.traits import SpeedTraits, TokenizerTraits
from engine_launchers.value import Value
from engine_launchers.watch import WatchTraits

EngineName = Literal["vllm", "llama_server", "llama_cpp", "pytorch"]


# --- the plan ---------------------------------------------------------------------------------


class Tuning(Value):
    """The knobs of one engine run; None means: the engine's own default.

    `max_model_len` is tokens per sequence, `batch` is prompt tokens per evaluation step,
    `gpu_layers` is -1 for all, `tensor_split` the share of each GPU in them, empty for equal.
    `lora_rank` is the largest of the adapters' ranks. `compile` is torch.compile, for the pytorch
    engine. `sleep`: weights can be put aside and back. `extra_args` are a person's own flags: they
    come last, so they win.
    """

    max_model_len: int | None = None
    max_concurrency: int | None = None
    gpu_memory_fraction: float | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    replicas: int | None = None
    gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    threads: int | None = None
    batch: int | None = None
    flash_attention: bool | None = None
    cpu_offload_bytes: int | None = None
    lora_rank: int | None = None
    compile: bool | None = None
    sleep: bool | None = None
    extra_args: tuple[str, ...] = ()


class MemoryEstimate(Value):
    """Bytes that one engine takes on one device ("ram" or "gpu:0"), by purpose.

    `capacity` is all that the device has, `others` what other processes hold of it now.
    """

    device: str
    weights: int
    kv: int
    activations: int
    overhead: int
    capacity: int = 0
    others: int = 0

    @property
    def total(self) -> int:
        """What this engine takes."""
        return self.weights + self.kv + self.activations + self.overhead


class Expected(Value):
    """The speed that a plan promises, as [from, to]; None where nothing is known.

    `tokens_per_second` is one stream's decode, `batch_tokens_per_second` all streams' together,
    `ttft_seconds` the time to the first token of a prompt of `prompt_tokens`.
    """

    tokens_per_second: tuple[float, float] | None = None
    batch_tokens_per_second: float | None = None
    ttft_seconds: tuple[float, float] | None = None
    prompt_tokens: int | None = None
    source: str = "unknown"


class Rejection(Value):
    """A plan that was considered and refused, with the number or fact that ruled it out.

    `need` and `have` are that number and its limit, in `unit` (bytes, tokens, heads, …).
    """

    what: str
    why: str
    need: float | None = None
    have: float | None = None
    unit: str | None = None


class Listen(Value):
    """Where an engine listens; the gateway may do so with TLS."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    tls: bool = False

    @property
    def base_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


class EnginePlan(Value):
    """One decision: which engine runs which model how, and why.

    `pinned` names the fields of `tuning` that a person set: they are never changed by `relax`.
    `gpus` are indices of the machine's GPUs, `visible` the variables that keep the engine to them.
    `aliases` are further names of the model for clients, `image` is its container's. `address` is
    that of a server which somebody else runs (runtime "external"), `upstream_name` the model's name
    there. `guide` is what the requirement documents promise for the tier. `ladder` says what is
    tried next when memory runs out all the same. `rung` counts how often it was relaxed by then.
    """

    id: str
    engine: EngineName
    engine_version: str
    tier: str
    model: ModelSpec
    aliases: tuple[str, ...] = ()
    tuning: Tuning
    pinned: frozenset[str] = frozenset()
    gpus: tuple[int, ...] = ()
    visible: dict[str, str] = Field(default_factory=dict)
    runtime: Literal["process", "docker", "external"] = "process"
    image: str | None = None
    address: Listen | None = None
    upstream_name: str | None = None
    estimate: tuple[MemoryEstimate, ...] = ()
    expected: Expected = Expected()
    guide: Expected | None = None
    reasons: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    ladder: tuple[str, ...] = ()
    rung: int = 0


# --- running it -------------------------------------------------------------------------------


class LaunchSpec(Value):
    """Everything that a runtime needs to start one process.

    `argv[0]` may be the word `{engine}`: the caller puts the program of the engine's installation
    there, its own command or the interpreter of its environment. `env` comes on top of the few
    variables that a runtime lets its children inherit, and of those whose names begin with a word
    of `inherits`, never stored. `injected` are the flags that Engine Room added by itself. `vital`
    begin the command lines of those descendants whose end is the end of all. `memory_max`, bytes,
    limits the tree. `files` of this machine it reads. `container`: it is to run in one.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = Field(default_factory=dict)
    inherits: tuple[str, ...] = ()
    listen: Listen | None = None
    injected: tuple[str, ...] = ()
    vital: tuple[str, ...] = ()
    memory_max: int | None = None
    files: tuple[str, ...] = ()
    container: Container | None = None

    def with_engine(self, program: str) -> LaunchSpec:
        """The same spec with `{engine}` replaced."""
        argv = tuple(program if word == "{engine}" else word for word in self.argv)
        return self.model_copy(update={"argv": argv})


class ExitResult(Value):
    """How a process ended: `code` or `signal`, or in `error` why neither is known.

    `part` names the vital descendant whose end took the rest with it; code and signal are then its
    own, both None where they could not be read.
    """

    code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    error: str | None = None
    part: str | None = None

    def __str__(self) -> str:
        return f"its {self.part} {self._how()}" if self.part else self._how()

    def _how(self) -> str:
        if self.oom_killed:
            return "killed by the kernel for memory"
        if self.signal is not None:
            return f"ended by {_signal_name(self.signal)}"
        if self.code is not None:
            return f"exited with code {self.code}"
        return self.error or "ended in an unknown way"


def _signal_name(number: int) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return known.get(number, f"signal {number}")


class CrashCause(StrEnum):
    """Why an engine ended; the cause chooses the cure."""

    GPU_OOM = "gpu_oom"
    HOST_OOM = "host_oom"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    BAD_FLAGS = "bad_flags"
    MODEL_INVALID = "model_invalid"
    PORT_TAKEN = "port_taken"
    DRIVER_MISMATCH = "driver_mismatch"
    GPU_LOST = "gpu_lost"
    NO_ROOM = "no_room"
    UNRESPONSIVE = "unresponsive"
    START_STALLED = "start_stalled"
    WRONG_BUILD = "wrong_build"
    EXIT_UNREQUESTED = "exit_unrequested"
    KILLED = "killed"
    CRASHED = "crashed"
    UNKNOWN = "unknown"

    @property
    def recoverable(self) -> bool:
        """Whether the same command, or a smaller one, can work when tried again."""
        return self not in _DETERMINISTIC

    @property
    def advice(self) -> str:
        """What an operator can do about it; empty where the name says enough."""
        return _ADVICE.get(self, "")

    @property
    def needs_smaller_plan(self) -> bool:
        """Whether the same command would fail again for want of memory."""
        return self in _TOO_BIG


_DETERMINISTIC = {
    CrashCause.BAD_FLAGS, CrashCause.MODEL_INVALID, CrashCause.DRIVER_MISMATCH,
    CrashCause.WRONG_BUILD,
}  # fmt: skip
_ADVICE = {
    CrashCause.WRONG_BUILD: "the engine was built for another processor: remove its environment",
    CrashCause.MODEL_INVALID: "the engine cannot load the model file: check or replace it",
    CrashCause.BAD_FLAGS: "the engine refuses its command line: see its log",
}
_TOO_BIG = {
    CrashCause.GPU_OOM, CrashCause.HOST_OOM, CrashCause.KV_CACHE_TOO_SMALL, CrashCause.NO_ROOM,
}  # fmt: skip


# --- what the gateway has to know about an engine ----------------------------------------------


class Served(Value):
    """One name that clients may give for a model, and what the engine has to be sent for it.

    `model` is the engine's own name for it; `fields` are put into every body. `adapter` is the LoRA
    adapter behind the name, None for the model itself.
    """

    name: str
    model: str
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    adapter: str | None = None


class Quirks(Value):
    """How one engine differs from the ideal server, as data.

    `liveness_path` answers without touching the generation lock. `tokenize_path` is asked for
    token counts, prompts first; None where streams carry a usage chunk: with `usage_on_request`
    when `stream_options.include_usage` asks for it. `repetition_field` is the engine's name for the
    repetition penalty. `completion_fields` and `chat_fields` are the body fields that may reach the
    engine; a body with another field is refused by name. `tokenizer` is None where it is not to be
    asked.
    """

    liveness_path: str = "/health"
    tokenize_path: str | None = None
    tokenizer: TokenizerTraits | None = None
    usage_on_request: bool = False
    repetition_field: str = "repetition_penalty"
    completion_fields: frozenset[str] = frozenset()
    chat_fields: frozenset[str] = frozenset()


class Fit(Value):
    """A launcher's answer that a model can run: the tuning to use and the memory that takes.

    `gpus` are the positions, in the profile that was asked about, of the cards that are used,
    `spilled` the bytes of layers that stay in RAM although there are cards.
    """

    tuning: Tuning
    gpus: tuple[int, ...] = ()
    spilled: int = 0
    estimate: tuple[MemoryEstimate, ...]
    reasons: tuple[str, ...] = ()


class Launcher(Protocol):
    """One engine, as pure knowledge: values in, values out. Implementations live one per file."""

    name: EngineName
    version: str
    routes: frozenset[str]
    formats: frozenset[ModelFormat]
    quirks: Quirks
    speed: SpeedTraits
    watch: WatchTraits

    def fit(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        wish: Tuning,
        pinned: frozenset[str] = frozenset(),
    ) -> Fit | Rejection:
        """The tuning nearest to `wish` that all of `hardware` can hold, or why there is none.

        Fields named in `pinned` are kept as they are; where they do not fit, the rejection says
        what would. Everything else of the wish is an upper bound.
        """

    def command(self, plan: EnginePlan, listen: Listen) -> LaunchSpec:
        """The exact command line and environment for `plan`."""

    def served(self, plan: EnginePlan) -> tuple[Served, ...]:
        """Every name under which `plan` can be asked: the model's first, aliases, then adapters."""

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """Why the engine ended, from its exit status and the last lines of its log."""

    def relax(self, plan: EnginePlan, cause: CrashCause) -> EnginePlan | None:
        """The next smaller plan; fields that are pinned stay. None where no rung is left."""
