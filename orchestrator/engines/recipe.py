"""The command lines of uv and pip that make an environment. Pure: words in, words out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.engines.choosing import Requirement

OVERRIDES = "overrides.txt"


@dataclass(frozen=True)
class Installer:
    """What makes environments here: uv where it is, else the venv and pip of our own Python.

    `links` are the folders and pages of PIP_FIND_LINKS, which pip reads by itself.
    """

    python: str
    uv: str | None = None
    links: tuple[str, ...] = ()

    def venv(self, target: Path, seeded: bool = False) -> list[str]:
        """Make an empty environment; `seeded`: with pip in it."""
        if self.uv is None:
            return [self.python, "-m", "venv", str(target)]
        seed = ["--seed"] if seeded else []
        return [self.uv, "venv", *seed, "--python", self.python, str(target)]

    def install(
        self,
        python: str,
        packages: Sequence[str],
        *,
        dependencies: bool = True,
        overrides: Path | None = None,
    ) -> list[str]:
        """Install into the environment of `python`.

        `overrides` is a file for uv, see `override_lines`.
        """
        alone = [] if dependencies else ["--no-deps"]
        if self.uv is None:
            flags = ["--no-input", "--compile", *alone]
            return [python, "-m", "pip", "install", *flags, *packages]
        found = [word for link in self.links for word in ("--find-links", link)]
        over = ["--override", str(overrides)] if overrides else []
        flags = ["--python", python, "--compile-bytecode", *alone, *found, *over]
        return [self.uv, "pip", "install", *flags, *packages]


def override_lines(need: Requirement) -> str:
    """uv's way to leave packages out: asked for on a system that does not exist."""
    return "".join(f'{name}; sys_platform == "never"\n' for name in need.without)
