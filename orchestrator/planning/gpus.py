"""What makers publish about accelerators, as data. Pure: the caller reads `configs/gpus.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from engine_launchers.machine import Gpu, LinkKind, Vendor
from engine_launchers.value import Value
from orchestrator.errors import ConfigError
from orchestrator.planning.tiers import nominal_gb

Arithmetic = Literal["fp32", "fp16", "bf16", "fp8", "int8"]
Tokens = tuple[str, ...]

# What drivers put into a name that tells no two cards apart.
_NOISE = frozenset(
    {"nvidia", "geforce", "tesla", "amd", "ati", "radeon", "instinct", "apple", "intel", "arc"}
    | {"corporation", "inc", "gpu", "graphics", "generation", "tm"}
)
_NOISE_INSIDE = re.compile("nvidia|geforce|tesla|amd|radeon|instinct|apple|intel|arc|gpu")
_SERIES = frozenset({"rtx", "gtx", "rx"})  # people leave these away: "4090"
_SAME = {"mobile": "laptop", "notebook": "laptop", "gib": "gb", "g": "gb"}
_SIZE = re.compile(r"(\d+) gb")


class GpuTflops(Value):
    """Dense 10^12 operations per second by type; None where the card lacks the type."""

    fp32: float = Field(gt=0)
    fp16: float | None = Field(None, gt=0)
    bf16: float | None = Field(None, gt=0)
    fp8: float | None = Field(None, gt=0)
    int8: float | None = Field(None, gt=0)


class GpuInterconnect(Value):
    """The way between two equal GPUs; `gb_s` is 10^9 bytes per second, both directions together."""

    kind: LinkKind
    gb_s: float = Field(gt=0)


class GpuSpec(Value):
    """One row of the table: a maker's figures for one accelerator.

    `memory_gb` is the nominal size (2^30 bytes each), `reported_mib` what the driver prints for it,
    `bandwidth_gb_s` 10^9 bytes per second of its own memory. `unified`: the memory is the machine's
    RAM, and `memory_gb` the largest configuration that is sold. `architecture` is AMD's name for
    the chip's instruction set.
    """

    name: str = Field(min_length=1)
    match: tuple[str, ...] = ()
    vendor: Vendor
    memory_gb: float = Field(gt=0)
    reported_mib: int | None = Field(None, gt=0)
    unified: bool = False
    architecture: str | None = None
    bandwidth_gb_s: float = Field(gt=0)
    tflops: GpuTflops
    compute_capability: tuple[int, int] | None = None
    link: GpuInterconnect | None = None

    @field_validator("match")
    @classmethod
    def _every_pattern_says_something(cls, match: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in match:
            if not _tokens(pattern):
                raise ValueError(f"the pattern {pattern!r} names no card")
        return match

    @property
    def bandwidth(self) -> int:
        """Bytes per second of its own memory."""
        return int(self.bandwidth_gb_s * 10**9)

    def flops(self, arithmetic: Arithmetic) -> float | None:
        """Dense operations per second, None where the card lacks the type."""
        rate: float | None = getattr(self.tflops, arithmetic)
        return None if rate is None else rate * 1e12

    @cached_property
    def patterns(self) -> tuple[Tokens, ...]:
        """The row's names, taken apart as `find` compares them; a series may be left away."""
        names = [_tokens(name) for name in (self.name, *self.match)]
        bare = [tokens[1:] for tokens in names if tokens[0] in _SERIES and tokens[1:]]
        return tuple(dict.fromkeys((*names, *bare)))


class GpuTable(Value):
    """Every accelerator that is known, in the order of the file."""

    gpus: tuple[GpuSpec, ...]

    def find(self, name: str, memory_gb: float | None = None) -> GpuSpec | None:
        """The card that a driver's name or a short name means; None if no row fits it whole.

        Between rows of one name `memory_gb` decides, or the size in the name ("A100 40GB"), else
        the first is taken.
        """
        rows = self._named(name)
        said = _SIZE.search(" ".join(_tokens(name)))
        size = memory_gb or (float(said[1]) if said else None)
        return next((row for row in rows if row.memory_gb == size), rows[0] if rows else None)

    def of(self, gpu: Gpu) -> GpuSpec | None:
        """The row of a probed GPU: by name, and by memory where one name has several sizes.

        None for an unknown card and for a MIG slice, which has a share of what its card has.
        """
        if gpu.mig:
            return None
        rows = [row for row in self._named(gpu.name) if row.vendor == gpu.vendor]
        size = gpu.vram_total / 2**30 if gpu.unified else nominal_gb(gpu.vram_total)
        return min(rows, key=lambda row: abs(row.memory_gb - size), default=None)

    def suggestions(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Up to `count` short names that look like an unknown one, the nearest first."""
        keys: dict[str, str] = {}
        for row in self.gpus:
            for pattern in row.patterns:
                keys.setdefault("".join(pattern), row.name)
        wanted = "".join(_tokens(name))
        inside = [key for key in keys if wanted and wanted in key]
        near = [*inside, *get_close_matches(wanted, keys, n=2 * count, cutoff=0.6)]
        return tuple(dict.fromkeys(keys[key] for key in near))[:count]

    def _named(self, name: str) -> list[GpuSpec]:
        """All rows whose longest fitting pattern is as long as any row's, in the table's order.

        Where none fits, those whose pattern is the name written in one word.
        """
        tokens = _tokens(name)
        best = [(max(_fits(tokens, row), default=0), row) for row in self.gpus]
        longest = max((length for length, _ in best), default=0)
        if longest:
            return [row for length, row in best if length == longest]
        word = _one_word(tokens)
        return [row for row in self.gpus if word in map(_one_word, row.patterns)]


def parse_gpus(data: Mapping[str, Any]) -> GpuTable:
    """Validate the content of `gpus.yaml`. Raises ConfigError that names the row and field."""
    try:
        rows = list(data["gpus"])
    except (KeyError, TypeError) as error:
        raise ConfigError("gpus.yaml: it must hold a list named `gpus`") from error
    specs: dict[str, GpuSpec] = {}
    for place, row in enumerate(rows, 1):
        called = row.get("name", place) if isinstance(row, Mapping) else place
        try:
            spec = GpuSpec.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the row"
            raise ConfigError(f"gpus.yaml: row {called}: {field}: {first['msg']}") from error
        key = "".join(_tokens(spec.name))
        if not key:
            raise ConfigError(f"gpus.yaml: row {called}: name: it names no card")
        if key in specs:
            raise ConfigError(f"gpus.yaml: row {called}: name: another row has this name")
        specs[key] = spec
    return GpuTable(gpus=tuple(specs.values()))


def _tokens(name: str) -> Tokens:
    """Words and numbers of a name, without case, punctuation, makers and what is in parentheses."""
    text = re.sub(r"\([^)]*\)|\bhbm\d?e?\b|\b\d+[- ]cores?\b", " ", name.lower())
    words = re.findall(r"[a-z]+|\d+", text)
    return tuple(_SAME.get(word, word) for word in words if word not in _NOISE)


def _one_word(tokens: Tokens) -> str:
    return _NOISE_INSIDE.sub("", "".join(tokens))


def _fits(tokens: Tokens, row: GpuSpec) -> Iterable[int]:
    """Lengths of the row's patterns that the name holds, with nothing left that tells another card.

    A left-over size is none if it is the row's own or the row is sold in many.
    """
    for pattern in row.patterns:
        length = len(pattern)
        for start in range(len(tokens) - length + 1):
            if tokens[start : start + length] == pattern:
                rest = tokens[:start] + tokens[start + length :]
                own = rest == (f"{row.memory_gb:g}", "gb")
                if not rest or own or (row.unified and _SIZE.fullmatch(" ".join(rest))):
                    yield length
