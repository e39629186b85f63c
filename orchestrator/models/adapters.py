"""LoRA adapters: what a person named becomes part of the artefacts that can carry it.

An adapter is a folder as PEFT saves it, for a model of safetensors, or a GGUF file, for llama.cpp.
The same name may be given in both formats. Files are read before any engine sees them: a missing
adapter lets one engine start and die at the first request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine_launchers.model import Adapter, ModelFormat, ModelSpec
from orchestrator.errors import ConfigError, ModelInvalid
from orchestrator.models.folder import is_model_folder
from orchestrator.models.gguf_adapter import read_gguf_adapter
from orchestrator.models.names import model_name
from orchestrator.models.resolve import Resolved
from orchestrator.models.safetensors import read_adapter, read_json


@dataclass(frozen=True)
class Asked:
    """One adapter as a person gave it. `always`: the model's own name means the model with it."""

    name: str
    path: Path
    always: bool = False


def is_adapter_folder(path: Path) -> bool:
    """Whether it is a PEFT adapter and no whole model."""
    return (path / "adapter_config.json").is_file() and not is_model_folder(path)


def base_of(path: Path) -> str:
    """The model that the adapter in this folder belongs to. Raises ModelInvalid."""
    base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelInvalid(
            f"{path}: a LoRA adapter that does not say which model it belongs to: give that as "
            "BASE_MODEL and the adapter as ADAPTER_PATH"
        )
    return base


def always(path: str) -> Asked:
    """The adapter of ADAPTER_PATH: behind the model's own name."""
    found = Path(path).expanduser()
    return Asked(model_name(found.name), found, always=True)


def with_adapters(resolved: Resolved, asked: Sequence[Asked]) -> Resolved:
    """The artefacts that can carry every adapter, with them.

    Raises ModelInvalid for files that are no adapters or belong to another kind of model,
    ConfigError where no artefact of the model has the adapters' format.
    """
    if not asked:
        return resolved
    read = [_read(each) for each in asked]
    names = {adapter.name for adapter, _ in read}
    kept = _carrying(resolved.variants, read, names)
    if not kept:
        formats = sorted({each.format for each in resolved.variants})
        given = ", ".join(f"{a.name} ({_words(a.format)})" for a, _ in read)
        raise ConfigError(
            f"{resolved.name} is known as {' and '.join(formats)}, the adapters given are {given}: "
            "a folder of PEFT goes with safetensors, a GGUF adapter with a GGUF file; give every "
            "adapter in the format of the model"
        )
    return replace(resolved, variants=kept, others=_carrying(resolved.others, read, names))


def _carrying(
    variants: Sequence[ModelSpec], read: Sequence[tuple[Adapter, str]], names: set[str]
) -> tuple[ModelSpec, ...]:
    kept: list[ModelSpec] = []
    for model in variants:
        mine = tuple(adapter for adapter, _ in read if adapter.format == model.format)
        if {adapter.name for adapter in mine} != names:
            continue
        for adapter, made_for in read:
            if adapter.format == model.format == "gguf" and made_for != model.architecture:
                raise ModelInvalid(
                    f"{adapter.path}: an adapter for {made_for}, {model.id} is {model.architecture}"
                )
        kept.append(model.model_copy(update={"adapters": mine}))
    return tuple(kept)


def _read(asked: Asked) -> tuple[Adapter, str]:
    """The adapter, and what it was made for: its base model, or an architecture of GGUF."""
    path = asked.path.expanduser().absolute()
    if not path.exists():
        raise ModelInvalid(f"adapter {asked.name}: {path}: no such file or folder")
    if path.is_dir():
        peft = read_adapter(path)
        return _adapter(asked, path, "safetensors", peft.rank, peft.weight_bytes), peft.base_model
    gguf = read_gguf_adapter(path)
    return _adapter(asked, path, "gguf", gguf.rank, gguf.weight_bytes), gguf.architecture


def _adapter(asked: Asked, path: Path, kind: ModelFormat, rank: int, size: int) -> Adapter:
    return Adapter(
        name=asked.name, path=str(path), format=kind, rank=rank, weight_bytes=size,
        always=asked.always,
    )  # fmt: skip


def _words(kind: ModelFormat) -> str:
    return "a PEFT folder" if kind == "safetensors" else "a GGUF file"
