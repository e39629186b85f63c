"""Which modules run compiled, and whether those are of the sources beside them.

`make compiled` makes them and writes down what of; without it there are none, and all is Python.
"""

from __future__ import annotations

import hashlib
import json
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import ConfigError

PACKAGE = Path(__file__).parent
MANIFEST = PACKAGE / "compiled.json"
SUFFIX = EXTENSION_SUFFIXES[0]
"""Of the extension modules that this very interpreter takes."""


class Compiled(NamedTuple):
    """How many modules are compiled for this interpreter; of these, which have another source now.

    `paths` are relative to the folder that holds the package.
    """

    modules: int = 0
    stale: tuple[str, ...] = ()


def compiled(manifest: Path = MANIFEST) -> Compiled:
    """What `make compiled` left here: the modules are there, and the manifest says what of."""
    above = manifest.parent.parent
    made = sorted(manifest.parent.glob(f"**/*{SUFFIX}"))
    found = [str(each.relative_to(above)).removesuffix(SUFFIX) + ".py" for each in made]
    try:
        sources = dict(json.loads(manifest.read_text())["sources"])
    except (OSError, ValueError, TypeError, KeyError):
        sources = {}  # its writing was interrupted: nobody knows what they are of
    stale = (path for path in found if sources.get(path) != _hash(above / path))
    return Compiled(len(found), tuple(stale))


def check() -> None:
    """Raises ConfigError where Python would run what the sources do not say any more."""
    if stale := compiled().stale:
        raise ConfigError(
            f"{len(stale)} compiled modules are not of the sources here (first: {stale[0]}): "
            "run `make compiled`, or `make pure` for plain Python"
        )


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
