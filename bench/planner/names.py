"""From the name of a model as people write it to the shape that is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine_launchers.model import ModelSpec

Row = Mapping[str, Any]

_QUANTIZED = re.compile(r"(?<![a-z0-9])(ud-)?i?q\d(_[a-z0-9]+)*(?![a-z0-9])|-?iq\d[a-z0-9_]*")
# Words that say how a model is stored or tuned, not what shape it has.
_TUNING = frozenset(
    {
        *("gguf", "ggml", "awq", "gptq", "nvfp4", "mxfp4", "fp8", "fp4", "fp16", "bf16", "f16"),
        *("int4", "int6", "int8", "w4a16", "w8a8", "bnb", "qat", "4bit", "8bit", "4-bit"),
        *("dynamic", "block", "instruct", "chat", "base", "it", "hf", "meta", "unsloth", "merged"),
        *("finetune", "lora", "class", "tag", "latest", "build", "synthia", "mixed", "autoround"),
        *("thinking", "mtp", "xl", "ud", "deepseek", "ai", "nvidia", "tune", "fine", "bit", "load"),
        *("moe", "128k", "4k", "1m", "1.0", "0.1", "0.2", "v0.1", "v0.2", "v1.0", "v", "v2", "gib"),
    }
)
_OTHER_SHAPE = frozenset(["vl", "omni", "vision", "next", "audio", "embedding", "moe"])
_OF_ARTEFACT = "kaito_quant"  # says how one repository is stored, not what shape the model has
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def key(name: str) -> str:
    """What is left of a model's name when owner, storage and tuning are taken off."""
    tail = name.split("(")[0].split(" + ")[0].strip().split("/")[-1].lower()
    tail = re.sub(r"\.gguf$", "", tail)
    tail = _QUANTIZED.sub(" ", tail)
    tail = re.sub(r"(?<=\d)_(?=\d)", ".", tail)
    words: list[str] = []
    for part in re.split(r"[-_\s:]+|(?<=[a-z])\.|\.(?=[a-z])", tail):
        chunk = part.strip(".")
        if chunk in _TUNING or re.fullmatch(r"\d{4}", chunk) or not chunk:
            continue
        split = re.match(r"([a-z]+)(\d[\d.]*)$", chunk)  # qwen3.5, phi4, gemma3
        pair = split.groups() if split and split.group(1) not in {"a", "e", "v"} else (chunk,)
        words += [word for word in pair if word not in _TUNING]
    return " ".join(words)


class Facts:
    """Model shapes by name; entries of one model, and of one shape, complete each other."""

    def __init__(self, rows: Iterable[Row], catalog: Mapping[str, Sequence[ModelSpec]]) -> None:
        listed = list(rows)
        self._catalog = {key(name): specs for name, specs in catalog.items()}
        self._exact = {row["id"].lower(): row for row in listed}
        self._merged: dict[str, dict[str, Any]] = {}
        for row in listed:
            _complete(self._merged.setdefault(key(row["id"]), {}), row)
        for whole in self._merged.values():
            for row in listed:
                if _same_shape(whole, row):
                    _borrow(whole, row)

    def find(self, name: str) -> dict[str, Any] | None:
        """Everything known of the model that `name` means, None where it is not known."""
        wanted = key(name)
        merged = self._merged.get(wanted) or self._base(wanted)
        if merged is None:
            return None
        exact = self._exact.get(name.lower(), {})
        own = {field: value for field, value in exact.items() if value is not None}
        for field in ("safetensors_total_bytes", "quantization_config"):
            own.setdefault(field, None)  # of this artefact, or of none
        extra = {k: v for k, v in merged["extra"].items() if not k.startswith(_OF_ARTEFACT)}
        return {**merged, **own, "extra": {**extra, **(exact.get("extra") or {})}}

    def listed(self, name: str, quantization: str) -> ModelSpec | None:
        """The artefact of our own catalog, for a model that the facts do not have."""
        same = {"FP16": "BF16", "F16": "FP16"}
        wanted = {quantization, same.get(quantization, quantization)}
        specs = self._catalog.get(key(name), ())
        return next((spec for spec in specs if spec.quantization in wanted), None)

    def _base(self, wanted: str) -> dict[str, Any] | None:
        """The model that a fine-tune was made of: all its words stand in the wanted name."""
        words = wanted.split()
        if _OTHER_SHAPE & set(words):
            return None
        within = [
            known
            for known in self._merged
            if len(known.split()) > 1 and set(known.split()) <= set(words)
        ]
        return self._merged[max(within, key=len)] if within else None


def _complete(whole: dict[str, Any], row: Row) -> None:
    for field, value in row.items():
        own = field in {"extra", "id", "safetensors_total_bytes", "quantization_config"}
        if not own and whole.get(field) is None:
            whole[field] = value
    whole["extra"] = {**(row.get("extra") or {}), **whole.get("extra", {})}


def _borrow(whole: dict[str, Any], row: Row) -> None:
    """What two models of one shape share: vocabulary, feed-forward, and what `extra` says."""
    for field in ("vocab_size", "intermediate_size"):
        if whole.get(field) is None:
            whole[field] = row.get(field)
    if whole.get("architecture") and whole["architecture"] == row.get("architecture"):
        if whole.get("experts") is None:
            whole["experts"] = row.get("experts")
        whole["extra"] = {**(row.get("extra") or {}), **whole["extra"]}


def _same_shape(whole: Row, row: Row) -> bool:
    """Whether two entries have one architecture and the same dimensions."""
    if any(whole.get(field) != row.get(field) or not row.get(field) for field in _SHAPE):
        return False
    if whole.get("head_dim") and row.get("head_dim") and whole["head_dim"] != row["head_dim"]:
        return False
    mine, other = whole.get("architecture"), row.get("architecture")
    return mine is None or other is None or mine == other
