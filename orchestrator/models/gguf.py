"""Reads the header of a GGUF file, trusting nothing in it.

Format (ggml's `docs/gguf.md`): magic, version, tensor count, key-value count, the pairs, the tensor
table, then the data at an aligned offset. Every count and length is checked against the bytes that
are left before anything is allocated, and the tensors' extent against the file's size, so that a
truncated download is found before an engine is started.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import ModelInvalid

_MAX_DEPTH = 2
_MAX_TENSORS = 1_000_000
_MAX_PAIRS = 100_000

# value type -> struct format of one scalar
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
_STRING, _ARRAY = 8, 9

# tensor type -> (elements per block, bytes per block); ggml.h
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4),
    27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

# general.file_type -> name; llama.h
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the tensor table: how many elements, how many bytes; the shape, rows last."""

    name: str
    elements: int
    size: int
    shape: tuple[int, ...] = ()


@dataclass
class Header:
    """Parsed header: `metadata` by key, the tensor table in the file's order."""

    version: int
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: list[TensorInfo] = field(default_factory=list)

    @property
    def params(self) -> int:
        """Elements of all tensors."""
        return sum(each.elements for each in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(each.size for each in self.tensors)


class _Reader:
    """A cursor over bytes that never reads past their end."""

    def __init__(self, data: mmap.mmap | bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def fail(self, what: str) -> ModelInvalid:
        return ModelInvalid(f"{self.name}: not a usable GGUF file: {what}")

    def take(self, size: int) -> bytes:
        if size < 0 or size > len(self.data) - self.at:
            raise self.fail(f"the header is cut off at byte {self.at} (truncated download?)")
        chunk = self.data[self.at : self.at + size]
        self.at += size
        return chunk

    def scalar(self, fmt: str) -> Any:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]

    def count(self, limit: int, what: str) -> int:
        value: int = self.scalar("<Q")
        if value > limit:
            raise self.fail(f"{value} {what} is more than the file can hold")
        return value

    def string(self) -> str:
        size = self.count(len(self.data) - self.at, "bytes of text")
        return self.take(size).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < _MAX_DEPTH:
            inner = self.scalar("<I")
            smallest = struct.calcsize(_SCALARS[inner]) if inner in _SCALARS else 8
            size = self.count((len(self.data) - self.at) // smallest, "array elements")
            if inner in _SCALARS:
                fmt = f"<{size}{_SCALARS[inner][1]}"
                return list(struct.unpack(fmt, self.take(struct.calcsize(fmt))))
            return [self.value(inner, depth + 1) for _ in range(size)]
        raise self.fail(f"unknown value type {kind}")


def read_header(path: Path) -> Header:
    """Parse and check the header of `path`. Raises ModelInvalid with the reason in one sentence."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise ModelInvalid(f"{path}: not a usable GGUF file: shorter than any header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return parse(data, str(path))
    except OSError as error:
        raise ModelInvalid(f"{path}: cannot be read: {error.strerror}") from error


def parse(data: mmap.mmap | bytes, name: str) -> Header:
    """Parse the bytes of a whole GGUF file."""
    reader = _Reader(data, name)
    if reader.take(4) != b"GGUF":
        raise reader.fail("it does not begin with the GGUF magic")
    version = reader.scalar("<I")
    if version not in (2, 3):
        raise reader.fail(f"version {version} is not 2 or 3")
    tensors = reader.count(_MAX_TENSORS, "tensors")
    pairs = reader.count(_MAX_PAIRS, "key-value pairs")
    header = Header(version)
    for _ in range(pairs):
        key = reader.string()
        header.metadata[key] = reader.value(reader.scalar("<I"))
    end = 0
    for _ in range(tensors):
        end = max(end, _tensor(reader, header))
    align = header.metadata.get("general.alignment", 32)
    if not isinstance(align, int) or not 0 < align <= 1 << 20:
        raise reader.fail(f"alignment {align!r} is not a sensible number")
    start = -(-reader.at // align) * align
    if start + end > len(data):
        missing = start + end - len(data)
        raise reader.fail(f"{missing} bytes of tensor data are missing (truncated download?)")
    if header.weight_bytes > len(data):
        raise reader.fail("its tensors overlap: together they are larger than the file")
    return header


def _tensor(reader: _Reader, header: Header) -> int:
    name = reader.string()
    dims = reader.scalar("<I")
    if dims > 4:
        raise reader.fail(f"tensor {name[:64]!r} has {dims} dimensions")
    shape = tuple(reader.scalar("<Q") for _ in range(dims))
    elements = math.prod(shape)
    kind, offset = reader.scalar("<I"), reader.scalar("<Q")
    if kind not in _BLOCKS:
        raise reader.fail(f"tensor {name[:64]!r} has the unknown type {kind}")
    per_block, block_bytes = _BLOCKS[kind]
    size = -(-elements // per_block) * block_bytes
    header.tensors.append(TensorInfo(name, elements, size, shape))
    end: int = offset + size
    return end
