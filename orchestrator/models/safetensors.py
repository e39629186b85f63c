"""Reads what safetensors files say of themselves: their headers, their index, an adapter's config.

Nothing in them is trusted: every length is bounded before it is read, shard names must be plain,
and the tensors' extent is held against the file, so that a truncated download is found early.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ModelInvalid

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER = 100_000_000  # the format's own limit
_MAX_JSON = 64 << 20
_MAX_SHARDS = 10_000


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter: `rank` of its matrices, the modules it changes, the model it belongs to."""

    path: Path
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base_model: str
    weight_bytes: int


def read_json(path: Path, limit: int = _MAX_JSON) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes. Raises ModelInvalid."""
    try:
        if path.stat().st_size > limit:
            raise ModelInvalid(f"{path}: larger than {limit >> 20} MiB: not what its name says")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path}: not JSON (truncated download?)") from error
    if not isinstance(value, dict):
        raise ModelInvalid(f"{path}: not a JSON object")
    return value


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of one file, outermost dimension first. Raises ModelInvalid."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in _header(path)[0].items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape):
            shapes[name] = tuple(shape)
    return shapes


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header of one file, its length, and the file's. Raises ModelInvalid."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ModelInvalid(f"{path}: not a safetensors file, or cut off in its header")
            raw = file.read(length)
        header = json.loads(raw)
    except OSError as error:
        raise ModelInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path}: its header is not JSON") from error
    if not isinstance(header, dict):
        raise ModelInvalid(f"{path}: its header is not a JSON object")
    return header, length, size


def read_tensors(path: Path) -> list[tuple[str, int]]:
    """Name and bytes of every tensor of one file. Raises ModelInvalid."""
    header, length, size = _header(path)
    found, end = [], 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = _offsets(path, name, entry)
        found.append((name, last - first))
        end = max(end, last)
    if 8 + length + end > size:
        missing = 8 + length + end - size
        raise ModelInvalid(f"{path}: {missing} bytes are missing at its end (truncated download?)")
    if sum(each for _, each in found) > size:
        raise ModelInvalid(f"{path}: its tensors overlap")
    return found


def _offsets(path: Path, name: str, entry: object) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2:
        first, last = offsets
        if isinstance(first, int) and isinstance(last, int) and 0 <= first <= last:
            return first, last
    raise ModelInvalid(f"{path}: the tensor {name[:64]!r} has no sensible offsets")


def shard_names(index: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The files that an index names, in order. Raises ModelInvalid."""
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ModelInvalid(f"{where}: it names no files: the key weight_map is missing")
    names = sorted({str(name) for name in weights.values()})
    if len(names) > _MAX_SHARDS or any(
        "/" in name or "\\" in name or name[:1] == "." for name in names
    ):
        raise ModelInvalid(f"{where}: it names files outside its own folder")
    return tuple(names)


def index_total(index: Mapping[str, Any]) -> int | None:
    """The size of all tensors as an index states it, None where it does not."""
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    return total if isinstance(total, int) and 0 < total < 1 << 50 else None


def folder_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model in `folder`. Raises ModelInvalid."""
    index = folder / INDEX
    if index.is_file():
        names = shard_names(read_json(index), str(index))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelInvalid(f"{folder}: {missing[0]}{more} missing: complete the download")
        return tuple(folder / name for name in names)
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    loose = tuple(sorted(folder.glob("*.safetensors")))
    found = tuple(path for path in loose if not path.name.startswith("adapter_"))
    if not found:
        raise ModelInvalid(
            f"{folder}: no {SINGLE} and no {INDEX}: weights in another format (.bin, .pt) are not "
            "loaded; convert them to safetensors"
        )
    return found


def folder_tensors(folder: Path) -> list[tuple[str, int]]:
    """Name and bytes of every tensor of the model in `folder`. Raises ModelInvalid."""
    found: list[tuple[str, int]] = []
    for path in folder_files(folder):
        found += read_tensors(path)
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX)["weight_map"].keys()
        lost = sorted(named - {name for name, _ in found})
        if lost:
            raise ModelInvalid(f"{folder}: the tensor {lost[0]} is in none of its files")
    return found


def read_adapter(folder: Path) -> PeftAdapter:
    """Describe the LoRA adapter in `folder`. Raises ModelInvalid."""
    if not (folder / "adapter_config.json").is_file():
        raise ModelInvalid(f"{folder}: not a LoRA adapter: adapter_config.json is missing")
    config = read_json(folder / "adapter_config.json")
    rank = config.get("r")
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise ModelInvalid(f"{folder}: an adapter of type {kind[:32]}, only LoRA is supported")
    if not isinstance(rank, int):
        raise ModelInvalid(f"{folder}: not a LoRA adapter: its adapter_config.json has no rank `r`")
    if not 0 < rank <= 1 << 16:
        raise ModelInvalid(f"{folder}: a LoRA rank of {rank} makes no sense")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelInvalid(f"{folder}: adapter_model.safetensors is missing")
    modules, alpha = config.get("target_modules"), config.get("lora_alpha")
    return PeftAdapter(
        path=folder,
        rank=rank,
        alpha=float(alpha) if isinstance(alpha, int | float) else float(rank),
        target_modules=tuple(map(str, modules))
        if isinstance(modules, list)
        else (str(modules),)
        if modules
        else (),
        base_model=str(config.get("base_model_name_or_path") or ""),
        weight_bytes=sum(size for _, size in read_tensors(weights)),
    )
