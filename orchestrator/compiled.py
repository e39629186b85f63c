"""Which modules run compiled, and whether those are of the sources beside them.

`make compiled` makes them and writes down what of; without it there are none, and all is Python.
"""

from __future__ import annotations

import hashlib
import json
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

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
    """What `make compiled` left here; a manifest that is none tells of nothing."""
    try:
        told = json.loads(manifest.read_text())
        suffix, sources = told["suffix"], dict(told["sources"])
    except (OSError, ValueError, TypeError, KeyError):
        return Compiled()
    if suffix != SUFFIX:  # another interpreter's: this one takes the sources
        return Compiled()
    above = manifest.parent.parent
    stale = (path for path, was in sources.items() if _hash(above / path) != was)
    return Compiled(len(sources), tuple(stale))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
