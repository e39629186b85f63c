"""The catalog: logical names, and the artefacts that each comes as, with all that planning needs.

Its data is `configs/models.yaml`. One logical name has a config (those keys of config.json that
count) and variants, one per precision and format. Nothing here reads a file or a hub: a plan can be
made from the catalog alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine_launchers.model import ModelSpec
from orchestrator.errors import ConfigError, ModelInvalid
from orchestrator.models.config_json import spec_from_config
from orchestrator.models.quantization import known

_REPOSITORY = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$"
_NAME = r"^[a-z0-9][a-z0-9._-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Strict):
    """One artefact: a repository, or one GGUF file of it.

    `quantizations` stands for several files that differ by that word: `{}` in `file` is where it
    goes. `weight_bytes` is given only where a source states it. `quantization_config` holds the
    keys of config.json of that name that differ from the usual.
    """

    source: str = Field(pattern=_REPOSITORY)
    quantization: str | None = None
    quantizations: tuple[str, ...] = ()
    file: str | None = Field(None, pattern=r"^[\w{][\w{}./-]*\.gguf$")
    weight_bytes: int | None = Field(None, gt=0)
    quantization_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Variant:
        names = self.names
        if self.file and ".." in self.file:
            raise ValueError("the file lies outside its repository")
        if not names or (self.quantization and self.quantizations):
            raise ValueError("give either quantization or quantizations")
        if self.quantizations and (self.file is None or "{}" not in self.file):
            raise ValueError("quantizations need a file with {} in its name")
        if self.weight_bytes and len(names) > 1:
            raise ValueError("weight_bytes belongs to one artefact")
        for name in names:
            if not known(name):
                raise ValueError(f"the precision {name!r} is not known")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The precisions this stands for."""
        return self.quantizations or ((self.quantization,) if self.quantization else ())


class Entry(_Strict):
    """A logical model: `config` has keys of a config.json; the first variant is the original."""

    config: dict[str, Any]
    variants: tuple[Variant, ...] = Field(min_length=1)
    aliases: tuple[str, ...] = ()


class _File(_Strict):
    models: dict[str, Entry]


@dataclass(frozen=True)
class Artefact:
    """One variant of one logical model, `file` filled in."""

    model: str
    source: str
    file: str | None
    quantization: str
    variant: Variant

    @property
    def format(self) -> Literal["gguf", "safetensors"]:
        """How it is stored."""
        return "gguf" if self.file else "safetensors"

    @property
    def address(self) -> str:
        """Where it lies on the hub: owner/name, or owner/name/file."""
        return f"{self.source}/{self.file}" if self.file else self.source


@dataclass(frozen=True)
class Match:
    """What a name means: artefacts, and whether the name asked for just these."""

    model: str
    artefacts: tuple[Artefact, ...]
    pinned: bool


class Catalog:
    """All logical models by name; lookups ignore case."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)
        self._index: dict[str, Match] = {}
        for name in self._entries:
            self._enter(name)

    @classmethod
    def load(cls, data: object, where: str = "models.yaml") -> Catalog:
        """Check parsed YAML. Raises ConfigError with one line per bad key."""
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            lines = (
                f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}"
                for each in error.errors()[:10]
            )
            raise ConfigError(f"{where}: " + "; ".join(lines)) from error
        return cls(file.models)

    def names(self) -> tuple[str, ...]:
        """The logical names, in the file's order."""
        return tuple(self._entries)

    def find(self, name: str) -> Match | None:
        """What `name` means: a logical name or alias (all artefacts), the original's repository
        (all of them too), another repository, one artefact's name or its address (just those)."""
        return self._index.get(name.removeprefix("hf://").lower())

    def spec(self, artefact: Artefact, source: str | None = None) -> ModelSpec:
        """Describe an artefact from the catalog alone; `source` is its path where it is local."""
        entry, variant = self._entries[artefact.model], artefact.variant
        config = dict(entry.config)
        if variant.quantization_config:
            config["quantization_config"] = variant.quantization_config
        return spec_from_config(
            config,
            model_id=artefact.model,
            source=source or f"hf://{artefact.address}",
            weight_bytes=variant.weight_bytes,
            quantization=artefact.quantization,
            format=artefact.format,
        )

    def variants(self, name: str) -> tuple[ModelSpec, ...]:
        """All artefacts of what `name` means. Raises ModelInvalid where it means nothing."""
        match = self.find(name)
        if match is None:
            raise ModelInvalid(f"model {name!r} is not in the catalog")
        return tuple(self.spec(each) for each in match.artefacts)

    def _enter(self, name: str) -> None:
        entry = self._entries[name]
        every = tuple(
            Artefact(name, v.source, v.file.replace("{}", q) if v.file else None, q, v)
            for v in entry.variants
            for q in v.names
        )
        whole = Match(name, every, pinned=False)
        for word in (name, *entry.aliases, entry.variants[0].source):
            self._put(word, whole)
        for each in every:
            one = Match(name, (each,), pinned=True)
            self._put(each.address, one)
            if each.file:
                self._put(each.file.rsplit("/", 1)[-1], one)
            for word in (name, *entry.aliases):
                if each.file:
                    self._put(f"{word}.{each.quantization}.gguf", one)
                    self._put(f"{word}-{each.quantization}.gguf", one)
                self._put(f"{word}-{each.quantization}", one)
        for source in dict.fromkeys(each.source for each in every):
            own = tuple(each for each in every if each.source == source)
            self._put(source, Match(name, own, pinned=len(own) == 1))
            self._put(source.split("/")[1], Match(name, own, pinned=len(own) == 1))

    def _put(self, word: str, match: Match) -> None:
        self._index.setdefault(word.lower(), match)
