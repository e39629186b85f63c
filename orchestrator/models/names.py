"""The words people use for precisions, and how near a mistyped name is. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from engine_launchers.model import ModelSpec
from engine_launchers.precision import satisfies
from orchestrator.errors import ConfigError


def choose(name: str, found: Iterable[ModelSpec], wish: str | None) -> tuple[ModelSpec, ...]:
    """Those of `found` that satisfy the wish. Raises ConfigError naming what there is."""
    every = tuple(found)
    kept = tuple(each for each in every if satisfies(each.quantization, wish))
    if not kept:
        have = ", ".join(dict.fromkeys(each.quantization for each in every))
        raise ConfigError(
            f"quantization {wish}: the model {name} comes as {have} only; leave it unset, or name "
            "another model"
        )
    return kept


def model_name(file_name: str) -> str:
    """A name for clients from a file or folder name: letters, digits, `.`, `_` and `-`."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", file_name.removesuffix(".gguf"))
    return re.sub(r"-\d{5}-of-\d{5}$", "", clean.strip("-.")) or "model"


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean a, b` where names come close, else nothing."""
    close = difflib.get_close_matches(name.lower()[:200], list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""
