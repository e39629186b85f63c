"""LoRA adapters in GGUF files, checked before an engine sees them.

llama.cpp's Python server starts with a missing adapter and dies of it at the first request; the
native one ends at the start. What either would refuse is refused here, in words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine_launchers.model import Adapter, ModelSpec
from orchestrator.errors import ModelInvalid
from orchestrator.models.gguf import Header, TensorInfo, read_header

_LAYER = re.compile(r"blk\.(\d+)\.")
_A, _B = ".lora_a", ".lora_b"
_MAX_RANK = 1 << 16


@dataclass(frozen=True)
class GgufAdapter:
    """What a file says: the largest rank of its pairs, alpha, whose tensors it changes."""

    path: Path
    architecture: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    weight_bytes: int

    def adapter(self, name: str, always: bool = False) -> Adapter:
        """It under a name that clients may ask for."""
        return Adapter(
            name=name,
            path=str(self.path.absolute()),
            format="gguf",
            rank=self.rank,
            weight_bytes=self.weight_bytes,
            always=always,
        )


def read_gguf_adapter(path: Path, base: ModelSpec | None = None) -> GgufAdapter:
    """Describe the LoRA adapter at `path`, made for `base` where that is given.

    Raises ModelInvalid for a file that is missing, cut off, no adapter, or another model's.
    """
    header = read_header(path)
    meta = header.metadata
    if meta.get("general.type") != "adapter" or meta.get("adapter.type") != "lora":
        raise ModelInvalid(f"{path}: not a LoRA adapter: give the file that export to GGUF made")
    architecture, alpha = meta.get("general.architecture"), meta.get("adapter.lora.alpha")
    if not isinstance(architecture, str) or not isinstance(alpha, int | float):
        raise ModelInvalid(f"{path}: not a usable adapter: its architecture or alpha is missing")
    ranks = _ranks(path, header)
    found = GgufAdapter(
        path=path,
        architecture=architecture,
        rank=max(ranks.values()),
        alpha=float(alpha),
        targets=tuple(ranks),
        weight_bytes=header.weight_bytes,
    )
    if base is not None:
        _check_base(found, header, base)
    return found


def _ranks(path: Path, header: Header) -> dict[str, int]:
    """The rank of each changed tensor, from the shapes of its pair: (in, r) and (r, out)."""
    tensors = {each.name: each for each in header.tensors}
    ranks: dict[str, int] = {}
    for name, first in tensors.items():
        if name.endswith(_B) and name.removesuffix(_B) + _A not in tensors:
            raise ModelInvalid(f"{path}: not a usable adapter: {name} has no {_A} beside it")
        if not name.endswith(_A):
            continue
        target = name.removesuffix(_A)
        second = tensors.get(target + _B)
        if second is None or len(first.shape) != 2 or len(second.shape) != 2:
            raise ModelInvalid(f"{path}: not a usable adapter: {target} has no pair of matrices")
        rank = first.shape[1]
        if rank != second.shape[0] or not 0 < rank <= _MAX_RANK:
            raise ModelInvalid(
                f"{path}: not a usable adapter: the matrices of {target} are of rank {rank} and "
                f"{second.shape[0]}"
            )
        ranks[target] = rank
    if not ranks:
        raise ModelInvalid(f"{path}: not a usable adapter: it holds no pair of LoRA matrices")
    return ranks


def _check_base(found: GgufAdapter, header: Header, base: ModelSpec) -> None:
    """An adapter of another architecture, depth or width is another model's."""
    if found.architecture != base.architecture:
        raise ModelInvalid(
            f"{found.path}: an adapter for {found.architecture} models, {base.id} is "
            f"{base.architecture}: give one that was trained on it"
        )
    deepest = max((int(n[1]) for n in map(_LAYER.match, found.targets) if n), default=0)
    if deepest >= base.layers:
        raise ModelInvalid(
            f"{found.path}: it changes layer {deepest + 1}, {base.id} has {base.layers}: give an "
            "adapter that was trained on it"
        )
    wide = next((each for each in header.tensors if _reads_hidden(each)), None)
    if wide is not None and base.hidden and wide.shape[0] != base.hidden:
        raise ModelInvalid(
            f"{found.path}: made for a hidden size of {wide.shape[0]}, {base.id} has "
            f"{base.hidden}: give an adapter that was trained on it"
        )


def _reads_hidden(tensor: TensorInfo) -> bool:
    """Whether this is the first matrix of a product whose input is the hidden state."""
    return bool(re.search(r"\.(attn_[qkv]|ffn_(up|gate))\.weight\.lora_a$", tensor.name))
