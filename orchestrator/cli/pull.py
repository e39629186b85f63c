"""`engineroom pull`: a model from a hub into its cache."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli.show import duration, gib
from orchestrator.errors import ConfigError, ModelInvalid
from orchestrator.models.hub import Hub
from orchestrator.models.pull import Progress, Pulled, pull
from orchestrator.models.resolve import load_catalog

_QUIET_STEP_S = 10.0


class _Screen:
    """One line that is rewritten on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, notes: Console) -> None:
        self._notes, self._said_at = notes, 0.0

    def show(self, progress: Progress) -> None:
        """Tell how far it is, not too often."""
        now = time.monotonic()
        terminal = self._notes.is_terminal
        if now - self._said_at < (0.1 if terminal else _QUIET_STEP_S):
            return
        self._said_at = now
        share = 100 * progress.done // max(1, progress.total)
        text = f"{gib(progress.done)} of {gib(progress.total)} ({share} %), {progress.file}"
        if terminal:
            text = "\r\x1b[K" + text[: max(20, self._notes.width - 1)]
        self._notes.file.write(text if terminal else text + "\n")
        self._notes.file.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._notes.is_terminal:
            self._notes.file.write("\r\x1b[K")


def pull_command(
    model: Annotated[
        str, typer.Argument(help="A name of the catalog, or owner/name[/file] of a hub.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Fetch a model from a hub; interrupted, it goes on where it was.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean elsewhere.
    """
    screen = _Screen(Console(stderr=True))
    begun = time.monotonic()
    try:
        done = pull(address_of(model), Hub.from_env(), screen.show)
    finally:
        screen.end()
    _tell(done, time.monotonic() - begun, as_json)


def address_of(model: str) -> str:
    """Where on a hub `model` lies. Raises ConfigError where it stands for several artefacts."""
    match = load_catalog().find(model)
    if match is None:
        if "/" not in model:
            raise ModelInvalid(f"{model!r} is no name of the catalog; give owner/name of a hub")
        return model
    whole = [each for each in match.artefacts if each.address.lower() == model.lower()]
    if whole or len(match.artefacts) == 1:
        return (whole or list(match.artefacts))[0].address
    names = ", ".join(dict.fromkeys(f"{match.model}-{a.quantization}" for a in match.artefacts))
    raise ConfigError(f"{model} stands for several artefacts; pull one of {names}")


def _tell(done: Pulled, seconds: float, as_json: bool) -> None:
    if as_json:
        told = {
            "model": done.address,
            "path": str(done.path),
            "bytes": done.size,
            "fetched_bytes": done.fetched,
            "seconds": round(seconds, 3),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        return
    came = f"{gib(done.fetched)} in {duration(seconds)}" if done.fetched else "it was here already"
    sys.stdout.write(f"{done.address}: {came}\n{done.path}\n")
