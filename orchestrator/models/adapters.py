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
from orchestrator.models.safetensors_adapter import check_base


@dataclass(frozen=True)
class Asked:
    """One adapter as a person gave it. `always`: the model's own name means the model with it."""

    name: str
    path: Path
    always: bool = False


def is_adapter_folder(path: Path) -> bool:
    """Whether it is a PEFT adapter and no whole model. Raises ModelInvalid for what we may not
    look into."""
    try:
        return (path / "adapter_config.json").is_file() and not is_model_folder(path)
    except PermissionError as error:
        raise ModelInvalid(
            f"{path}: this user may not look into it, or into its folder: let it (chmod -R a+rX), "
            "or run as the owner"
        ) from error


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

    Raises ModelInvalid for files that are no adapters or belong to another model, ConfigError where
    no artefact of the model has the adapters' format.
    """
    if not asked:
        return resolved
    read = [_read(each) for each in asked]
    kept = _carrying(resolved.variants, read)
    if not kept:
        formats = sorted({each.format for each in resolved.variants})
        given = ", ".join(f"{each.name} ({_words(each.format)})" for each in read)
        raise ConfigError(
            f"{resolved.name} is known as {' and '.join(formats)}, the adapters given are {given}: "
            "a folder of PEFT goes with safetensors, a GGUF adapter with a GGUF file; give every "
            "adapter in the format of the model"
        )
    return replace(resolved, variants=kept, others=_carrying(resolved.others, read))


def _carrying(variants: Sequence[ModelSpec], read: Sequence[Adapter]) -> tuple[ModelSpec, ...]:
    names = {each.name for each in read}
    kept: list[ModelSpec] = []
    for model in variants:
        mine = tuple(each for each in read if each.format == model.format)
        if {each.name for each in mine} != names:
            continue
        for each in mine:
            if model.format == "gguf":
                read_gguf_adapter(Path(each.path), model)
            else:
                check_base(Path(each.path), model)
        kept.append(model.model_copy(update={"adapters": mine}))
    return tuple(kept)


def _read(asked: Asked) -> Adapter:
    path = asked.path.expanduser().absolute()
    if not path.exists():
        raise ModelInvalid(f"adapter {asked.name}: {path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise ModelInvalid(f"adapter {asked.name}: {path}: not a regular file")
    if not path.is_dir():
        return read_gguf_adapter(path).adapter(asked.name, asked.always)
    peft = read_adapter(path)
    return Adapter(
        name=asked.name, path=str(path), format="safetensors", rank=peft.rank,
        weight_bytes=peft.weight_bytes, always=asked.always,
    )  # fmt: skip


def _words(kind: ModelFormat) -> str:
    return "a PEFT folder" if kind == "safetensors" else "a GGUF file"
