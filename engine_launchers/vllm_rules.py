"""Which artefacts, cards and splits vLLM 0.32 takes, and what it computes in. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from engine_launchers import vllm_memory
from engine_launchers.base import Rejection, Tuning
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec

_GROUP = 128  # columns of one AWQ or GPTQ scale: a rank's share must be whole groups
_AMD = ("gfx90a", "gfx942", "gfx950", "gfx110", "gfx115", "gfx120")
_AMD_QUANTIZATIONS: dict[str, tuple[str, ...]] = {  # artefact -> chips that have its kernels
    "FP8": ("gfx942", "gfx950", "gfx120"),
    "MXFP4": ("gfx942", "gfx950"),
    "NVFP4": (),
    "INT8": ("gfx90a", "gfx942", "gfx950"),
}
_NO_FLOAT16 = ("Gemma2", "Gemma3", "Glm4")  # their activations overflow: vLLM refuses to start
MAX_RANK = 512
SIXTEEN = frozenset({"BF16", "FP16", "FP32"})
_QUANTIZATIONS = {  # artefact -> lowest compute capability
    "AWQ": (7, 5), "GPTQ": (7, 5), "INT8": (7, 5), "INT4": (7, 5), "FP8": (8, 9),
    "NVFP4": (8, 0), "MXFP4": (8, 0),
}  # fmt: skip


def refuse_artefact(model: ModelSpec) -> Rejection | None:
    """Why this artefact cannot be loaded; None where it can."""
    if model.format != "safetensors":
        return no(f"reads safetensors, this is {model.format}; llama_cpp reads it")
    if model.quantization not in SIXTEEN and model.quantization not in _QUANTIZATIONS:
        return no(f"0.32 cannot load {model.quantization}; the pytorch engine or another variant")
    for adapter in model.adapters:
        if adapter.format != "safetensors":
            return no(f"applies PEFT adapters, {adapter.name} is {adapter.format}")
        if adapter.rank > MAX_RANK:
            return no(f"adapter {adapter.name} has rank {adapter.rank}, {MAX_RANK} is the most",
                            adapter.rank, MAX_RANK, "rank")  # fmt: skip
    return None


def refuse_machine(model: ModelSpec, hardware: HardwareProfile) -> Rejection | None:
    """Why these cards, or this system, cannot run it; None where they can."""
    if hardware.platform.startswith("windows"):
        return no("does not run on Windows; llama_cpp and pytorch do")
    for gpu in hardware.gpus:
        if gpu.vendor in {"apple", "intel"}:
            return no(f"does not drive {gpu.name}; llama_cpp does")
        arch = gpu.architecture
        if gpu.vendor == "amd" and arch and not arch.startswith(_AMD):
            return no(f"does not drive {gpu.name} ({arch}); llama_cpp does")
        able = _AMD_QUANTIZATIONS.get(model.quantization)
        if gpu.vendor == "amd" and arch and able is not None and not arch.startswith(able):
            return no(f"has no {model.quantization} on {gpu.name} ({arch})")
        have = gpu.compute_capability
        if gpu.vendor != "nvidia" or have is None:
            continue
        if have < (8, 0) and model.architecture.startswith(_NO_FLOAT16):
            return no(
                f"{model.architecture} needs BF16: compute capability 8.0, {gpu.name} has "
                f"{_dot(have)}",
                8.0, have[0] + have[1] / 10, "compute capability",
            )  # fmt: skip
        need = _QUANTIZATIONS.get(model.quantization, vllm_memory.CAPABILITY)
        need = max(need, vllm_memory.CAPABILITY)
        if have < need:
            what = model.quantization if need > vllm_memory.CAPABILITY else "vLLM"
            return no(
                f"{what} needs compute capability {_dot(need)}, {gpu.name} has {_dot(have)}",
                need[0] + need[1] / 10, have[0] + have[1] / 10, "compute capability",
            )  # fmt: skip
    return None


def refuse_parallel(model: ModelSpec, wish: Tuning) -> Rejection | None:
    """Why the ranks and stages of the wish do not divide the model; None where they do."""
    ranks, stages = wish.tensor_parallel or 1, wish.pipeline_parallel or 1
    if model.heads % ranks:
        return no(f"{model.heads} heads do not divide by tensor parallel {ranks}",
                        model.heads, ranks, "heads")  # fmt: skip
    if model.kv_heads % ranks and ranks % max(1, model.kv_heads):
        return no(f"{model.kv_heads} KV heads and tensor parallel {ranks} do not divide",
                        model.kv_heads, ranks, "KV heads")  # fmt: skip
    if (model.vision_heads or 0) % ranks:
        return no(
            f"{model.vision_heads} vision heads do not divide by tensor parallel {ranks}",
            model.vision_heads, ranks, "vision heads",
        )  # fmt: skip
    if model.quantization in {"AWQ", "GPTQ"} and (model.intermediate / ranks) % _GROUP:
        return no(
            f"{model.intermediate} columns over {ranks} ranks are not whole groups of {_GROUP}",
            model.intermediate / ranks, _GROUP, "columns",
        )  # fmt: skip
    if stages > model.layers:
        return no(f"{model.layers} layers cannot make {stages} stages",
                        model.layers, stages, "layers")  # fmt: skip
    return None


def refuse_cpu(model: ModelSpec, hardware: HardwareProfile, wish: Tuning) -> Rejection | None:
    """Why it cannot run without a GPU; None where it can."""
    if model.quantization not in SIXTEEN:
        return no(f"runs {model.quantization} on GPUs only")
    ranks, stages = wish.tensor_parallel or 1, wish.pipeline_parallel or 1
    if stages > 1:
        return no(f"pipeline parallel {stages} needs GPUs", stages, 1, "stages")
    if ranks > hardware.cpu_cores:
        return no(
            f"tensor parallel {ranks} needs a core for each worker, there are "
            f"{hardware.cpu_cores}", ranks, hardware.cpu_cores, "cores",
        )  # fmt: skip
    return refuse_parallel(model, wish)


def cpu_dtype(model: ModelSpec, hardware: HardwareProfile, wish: Tuning, reasons: list[str]) -> str:
    """What is computed in on a processor: the wish, but not BF16 where that means AMX attention.

    With 0.32.0 a worker on a virtual Intel processor with AMX ended in SIGILL at its first token
    in bfloat16, and did not in float16 (measured); no flag turns those kernels off.
    """
    wanted = wish.dtype or model.dtype
    if wanted != "bfloat16" or "AMX" not in hardware.isa:
        return wanted
    instead = "float32" if model.architecture.startswith(_NO_FLOAT16) else "float16"
    reasons.append(f"{instead}: in bfloat16 vLLM's AMX kernels end in SIGILL")
    return instead


def dtype(model: ModelSpec, gpus: Sequence[Gpu], wish: Tuning, reasons: list[str]) -> str | None:
    """What activations are computed in: the wish, but BF16 only from compute capability 8.0."""
    old = [g for g in gpus if g.compute_capability and g.compute_capability < (8, 0)]
    wanted = wish.dtype or ("float16" if model.dtype == "float32" else model.dtype)
    if model.architecture.startswith(_NO_FLOAT16):
        if wanted == "float16" and not old:
            reasons.append("bfloat16: this architecture overflows in float16")
        return "bfloat16"
    if model.quantization == "AWQ" and any(g.vendor == "amd" for g in gpus):
        return "float16"  # the kernels there know no other
    if wanted == "bfloat16" and old:
        reasons.append(f"float16: BF16 needs compute capability 8.0, {old[0].name} is older")
        return "float16"
    return wanted


def no(
    why: str,
    need: float | None = None,
    have: float | None = None,
    unit: str | None = None,
) -> Rejection:
    """A rejection of this engine."""
    return Rejection(what="vllm", why=why, need=need, have=have, unit=unit)


def _dot(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
