"""The settings of one model: which, on what, how large, and how long it stays in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.setting_types import (
    Arguments,
    Backend,
    Goal,
    ImageName,
    NamedPaths,
    Names,
    PlainName,
    Quantization,
    Routing,
    Seconds,
    Where,
)


class Defaults(BaseModel):
    """What a request that says nothing gets; what it says wins."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_new_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=2**32 - 2)


class ModelSettings(BaseModel):
    """Keys that may stand for all models, or in the entry of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "demo",
        min_length=1,
        description="A catalog name, `demo`, a GGUF file, a folder, or owner/name of a hub.",
    )
    name: PlainName | None = Field(
        None, description="How clients call it; unset: the model's own name."
    )
    aliases: Names = Field((), description="Further names of the model for clients.")
    adapter_path: str | None = Field(
        None, description="LoRA adapter to apply: the model's name means the model with it."
    )
    adapters: NamedPaths = Field(
        (), description="More LoRA adapters, NAME=PATH each: clients ask for them as models."
    )
    quantization: Quantization | None = Field(
        None, description="4bit, 8bit or none; unset lets the hardware tier choose."
    )
    force_backend: Backend | None = Field(
        None,
        description="vllm, llama_server, llama_cpp or pytorch instead of the planner's choice.",
    )
    engine_version: str | None = Field(
        None, min_length=1, description="Version of that engine; unset takes the newest installed."
    )
    engine_path: Path | None = Field(
        None, description="Program of that engine, used as it is instead of an installed one."
    )
    runtime: Where = Field(
        "process", description="Where engines run: process, on this machine, or docker."
    )
    engine_image: ImageName | None = Field(
        None, description="Image of that engine for docker; `engine_path` is its program in there."
    )
    engine_url: str | None = Field(
        None, description="A running server of that engine, http://host:port, used as it is."
    )
    engine_args: Arguments = Field(
        (), description="Flags for the engine's command line, as a shell reads them; they win."
    )
    install_missing: bool = Field(
        False, description="Install an engine that is missing without asking."
    )
    force_cpu: bool = Field(False, description="Use no GPU, whatever the machine has.")
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=1024, description="GPUs, or processor groups, per engine (vLLM only)."
    )
    enable_compile: bool = Field(False, description="torch.compile for the PyTorch engine.")
    context: int | None = Field(
        None, ge=64, le=16_777_216, description="Tokens per sequence; unset takes the tier's."
    )
    users: int | None = Field(
        None, ge=1, le=65_536, description="Requests with a full context that must fit at once."
    )
    goal: Goal | None = Field(
        None,
        description="throughput, latency, quality or memory; unset follows the hardware tier.",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of a card that vLLM may take; unset: what is free."
    )
    gpu_layers: int | None = Field(
        None, ge=0, le=10_000, description="Layers on the GPU (llama.cpp); unset: what fits."
    )
    threads: int | None = Field(
        None, ge=1, le=4096, description="Engine threads; unset takes the usable physical cores."
    )

    preload: bool | None = Field(
        None, description="Load it at the start; unset: `model` is, those of a list are not."
    )
    ttl_s: Seconds | None = Field(
        None, description="Unload it when nobody used it for so long, seconds; unset: never."
    )
    sleep_level: int = Field(
        0, ge=0, le=2, description="At that time put it to sleep where its engine can: 1 or 2."
    )
    pin: bool = Field(False, description="Never unload it for another model's sake.")
    priority: int = Field(
        0, ge=-100, le=100, description="Models of a higher priority are loaded first."
    )
    group: PlainName | None = Field(
        None, description="Models of one group are never loaded together."
    )
    exclusive: bool = Field(False, description="Loaded alone: all other models leave.")
    replicas: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Engines that serve it at the same time; unset: one."
    )
    routing: Routing = Field(
        "auto",
        description="How a request's replica is chosen: auto, least (in flight), prefix or p2c.",
    )
    defaults: Defaults | None = Field(
        None,
        description="Parameters of requests that say nothing, such as temperature, top_p, "
        "max_new_tokens; what a request says wins.",
    )
    max_concurrency: int | None = Field(
        None, ge=1, le=65_536, description="Most requests at once per engine, below what it can do."
    )


class ModelEntry(ModelSettings):
    """One of several models; `model` has to be said."""

    model: str = Field(min_length=1, description=ModelSettings.model_fields["model"].description)

    def own(self) -> dict[str, Any]:
        """The keys that this entry says itself."""
        return {key: getattr(self, key) for key in self.model_fields_set}
