"""`configs/engines.yaml` as values: engines, their versions, and the flavours of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from engine_launchers.base import EngineName
from engine_launchers.value import Value
from orchestrator.config_file import read_config_file
from orchestrator.errors import ConfigError
from orchestrator.resources import config_path

FlavourName = Literal["cuda", "rocm", "metal", "cpu"]
Pinned = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+(\[[a-z,-]+\])?==[A-Za-z0-9.+]+$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]+$", max_length=64)]
_MOST_GIB = 1000


class SourceFlavour(Value):
    """What one flavour adds to a build."""

    define: dict[str, str] = Field(default_factory=dict)
    needs: dict[str, str] = Field(default_factory=dict)


class Processor(Value):
    """What changes in a build on processors with the instruction set `when`."""

    when: str
    why: str
    define: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)


class Source(Value):
    """A source package that is compiled on the machine. The keys' meanings stand in the file."""

    package: Pinned
    folder: str
    tools: tuple[Pinned, ...]
    define: dict[str, str] = Field(default_factory=dict)
    flavours: dict[FlavourName, SourceFlavour] = Field(default_factory=dict)
    processors: tuple[Processor, ...] = ()


class Flavour(Value):
    """One version for one kind of accelerator."""

    platforms: tuple[str, ...] = Field(min_length=1)
    requirements: tuple[Pinned, ...] = ()
    without: tuple[Word, ...] = ()
    stands_for: dict[Word, Word] = Field(default_factory=dict)
    image: str | None = None
    minimum_driver: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$")] | None = None
    minimum_capability: tuple[int, int] | None = None
    check: str | None = None
    disk_gib: float = Field(gt=0, le=_MOST_GIB)


class Version(Value):
    """One version of an engine."""

    version: Word
    python: tuple[str, str] | None = None
    version_argv: tuple[str, ...] = ()
    requirements: tuple[Pinned, ...] = ()
    check: tuple[str, ...] = ()
    says: str | None = None
    source: str | None = None
    target: Word = "all"
    take: tuple[str, ...] = ()
    into: str = "bin"
    wheel: dict[str, str] | None = None
    flavours: dict[FlavourName, Flavour] = Field(min_length=1)

    @model_validator(mode="after")
    def _python_is_two_versions(self) -> Self:
        if self.python and not all(re.fullmatch(r"3\.[0-9]+", each) for each in self.python):
            raise ValueError("python: two versions such as ['3.11', '3.15']")
        return self


class EngineEntry(Value):
    """One engine: its programs and its versions, newest first."""

    program: str
    image_program: str = "python3"
    command: Word | None = None
    distribution: Word | None = None
    versions: tuple[Version, ...] = Field(min_length=1)

    @property
    def default(self) -> Version:
        """The newest version."""
        return self.versions[0]

    def version(self, wanted: str) -> Version | None:
        """The version called `wanted`, None where the table has no such."""
        return next((each for each in self.versions if each.version == wanted), None)


class EngineTable(Value):
    """All engines that can be installed, and the sources that some are compiled from."""

    sources: dict[str, Source] = Field(default_factory=dict)
    engines: dict[EngineName, EngineEntry]

    @model_validator(mode="after")
    def _sources_are_there(self) -> Self:
        for name, entry in self.engines.items():
            for version in entry.versions:
                if version.source and version.source not in self.sources:
                    raise ValueError(f"{name} {version.version}: no source {version.source}")
        return self


def parse_engine_table(document: object, place: str = "engines.yaml") -> EngineTable:
    """The table in a parsed YAML document. Raises ConfigError naming the key."""
    try:
        return EngineTable.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ConfigError(f"{place}: {key}: {first['msg'].lower()}") from error


def load_engine_table(path: Path | None = None) -> EngineTable:
    """The file at `path`, or the one that ships. Raises ConfigError naming file and key."""
    file = path or config_path("engines.yaml")
    return parse_engine_table(read_config_file(file), str(file))
