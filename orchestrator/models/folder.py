"""From a folder of safetensors, as `save_pretrained` leaves it, to a ModelSpec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_launchers.model import ModelSpec
from orchestrator.errors import ModelInvalid
from orchestrator.models.config_json import spec_from_config
from orchestrator.models.safetensors import folder_tensors, read_json
from orchestrator.models.tensor_parts import parts_of

_MAX_TEMPLATE = 4 << 20


def is_model_folder(folder: Path) -> bool:
    """Whether it has what every Hugging Face model has."""
    return (folder / "config.json").is_file()


def folder_spec(folder: Path, model_id: str, name: str | None = None) -> ModelSpec:
    """Describe the model in `folder`. Raises ModelInvalid.

    `name` is the repository's full name where it is known: it may tell the precision.
    """
    if not is_model_folder(folder):
        raise ModelInvalid(_not_a_model(folder))
    tensors = folder_tensors(folder)
    spec = spec_from_config(
        config_of(folder),
        model_id=name or model_id,
        source=str(folder.absolute()),
        weight_bytes=sum(size for _, size in tensors),
    )
    _held_against_config(spec, config_of(folder), folder)
    parts = parts_of(tensors, spec.layers)
    words = _tokenizer_words(folder)
    exact = {"weights": parts} if sum(parts.layers) else {}
    tied = {"tied_embeddings": parts.output == 0} if sum(parts.layers) else {}
    return spec.model_copy(update={"id": model_id, **exact, **tied, **words})


def _held_against_config(spec: ModelSpec, config: dict[str, Any], folder: Path) -> None:
    """Refuse files that are not this model's: a fifth, or five times, of what its shape implies."""
    try:
        implied = spec_from_config(
            config, model_id=spec.id, source=spec.source, quantization=spec.quantization
        ).weight_bytes
    except ModelInvalid:
        return  # a shape that cannot be counted says nothing about the files
    if implied and not implied / 5 <= spec.weight_bytes <= implied * 5:
        raise ModelInvalid(
            f"{folder}: its safetensors hold {spec.weight_bytes / 1e9:.2f} GB, config.json means "
            f"a model of {implied / 1e9:.2f} GB: files are missing, or belong to another model"
        )


def config_of(folder: Path) -> dict[str, Any]:
    """config.json, with the quantization that some makers put into a file of its own."""
    config = read_json(folder / "config.json")
    beside = folder / "hf_quant_config.json"
    if "quantization_config" not in config and beside.is_file():
        inner = read_json(beside).get("quantization")
        if isinstance(inner, dict):
            config["quantization_config"] = {**inner, "quant_method": "modelopt"}
    return config


def _not_a_model(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f"{folder}: a LoRA adapter, not a model: give its base model, and it as ADAPTER_PATH"
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f"{folder}: a folder of GGUF files: give one of them, e.g. {files[0].name}"
    return f"{folder}: a folder without config.json: give a model's folder or a GGUF file"


def _tokenizer_words(folder: Path) -> dict[str, str | None]:
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {
            each.get("name"): each.get("template") for each in template if isinstance(each, dict)
        }
        template = named.get("default")
    file = folder / "chat_template.jinja"
    if file.is_file() and file.stat().st_size <= _MAX_TEMPLATE:
        template = file.read_text(encoding="utf-8", errors="replace")
    return {
        "chat_template": template if isinstance(template, str) else None,
        "bos_token": _token(config.get("bos_token")),
        "eos_token": _token(config.get("eos_token")),
    }


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
