"""Reads a LoRA adapter in a GGUF file, as llama.cpp applies it to a model of the same architecture.

Facts of the format: `general.type` is "adapter", `adapter.type` "lora"; each changed tensor has a
pair `<name>.lora_a` (inputs x rank) and `<name>.lora_b` (rank x outputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ModelInvalid
from orchestrator.models.gguf import Header, read_header

_A, _B = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class GgufAdapter:
    """What one adapter file holds; `tensors` are the names of what it changes."""

    path: Path
    architecture: str
    rank: int
    alpha: float
    tensors: tuple[str, ...]
    weight_bytes: int


def read_gguf_adapter(path: Path) -> GgufAdapter:
    """Describe the adapter in `path`. Raises ModelInvalid."""
    header = read_header(path)
    meta = header.metadata
    if meta.get("general.type") != "adapter":
        raise ModelInvalid(f"{path}: a GGUF file, but no adapter: give the model as BASE_MODEL")
    if meta.get("adapter.type") != "lora":
        raise ModelInvalid(f"{path}: an adapter of type {meta.get('adapter.type')!r}, not LoRA")
    architecture, alpha = meta.get("general.architecture"), meta.get("adapter.lora.alpha")
    if not isinstance(architecture, str) or not isinstance(alpha, int | float):
        raise ModelInvalid(f"{path}: general.architecture or adapter.lora.alpha is missing")
    ranks = _ranks(path, header)
    return GgufAdapter(
        path=path,
        architecture=architecture,
        rank=max(ranks.values()),
        alpha=float(alpha),
        tensors=tuple(ranks),
        weight_bytes=header.weight_bytes,
    )


def _ranks(path: Path, header: Header) -> dict[str, int]:
    """The rank of each changed tensor. Raises ModelInvalid where a pair is not whole."""
    shapes = {each.name: each.shape for each in header.tensors}
    ranks: dict[str, int] = {}
    for name, shape in shapes.items():
        if not name.endswith(_A):
            continue
        base = name.removesuffix(_A)
        other = shapes.get(base + _B)
        if other is None or len(shape) < 2 or len(other) < 2 or shape[1] != other[0]:
            raise ModelInvalid(f"{path}: the pair of {base} is not whole")
        ranks[base] = shape[1]
    if not ranks:
        raise ModelInvalid(f"{path}: an adapter that changes nothing: it has no {_A} tensors")
    return ranks
