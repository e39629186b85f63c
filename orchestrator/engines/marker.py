"""The file that makes a folder an installed engine: what exactly was put there, written last."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from engine_launchers.base import EngineName
from engine_launchers.value import Value
from orchestrator.engines.choosing import Compile, Requirement
from orchestrator.engines.table import FlavourName

MARKER = "engineroom.json"


class Marker(Value):
    """What an environment holds. The fields are those of the requirement that it was made for.

    `check` is for the time when the table no longer lists this version; it decides nothing.
    """

    engine: EngineName
    version: str
    flavour: FlavourName
    program: str
    packages: tuple[str, ...]
    without: tuple[str, ...]
    stands_for: dict[str, str]
    source: Compile | None
    built_for: tuple[str, ...] | None
    check: tuple[tuple[str, ...], ...] = ()

    def holds(self, need: Requirement) -> bool:
        """Whether the environment is exactly what `need` asks for."""
        return self.model_copy(update={"check": need.check}) == marker(need)


def marker(need: Requirement) -> Marker:
    """The marker of an environment that holds exactly what `need` asks for."""
    return Marker(
        engine=need.engine,
        version=need.version,
        flavour=need.flavour,
        program=need.program,
        packages=need.packages,
        without=need.without,
        stands_for=need.stands_for,
        source=need.source,
        built_for=need.built_for,
        check=need.check,
    )


def read_marker(folder: Path) -> Marker | None:
    """The marker of an environment; None where there is none, or one of another format."""
    try:
        return Marker.model_validate_json((folder / MARKER).read_bytes())
    except (OSError, ValidationError):
        return None


def write_marker(folder: Path, need: Requirement) -> None:
    """Declare the environment whole, at one stroke."""
    draft = folder / f".{MARKER}"
    draft.write_text(marker(need).model_dump_json())
    draft.replace(folder / MARKER)
