"""An engine that somebody else installed: the program on PATH, and which version it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from orchestrator.engines.table import EngineEntry

_ANSWER_S = 10.0
_VERSION = re.compile(r"\bversion:?\s+v?(\S+)")


class OnPath:
    """Looks at programs on `path`; each is asked for its version at most once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[str, str | None] = {}

    def find(self, entry: EngineEntry, wanted: str | None) -> tuple[tuple[str, str] | None, str]:
        """(program, version) of one that can be used, else why what is there cannot; or neither."""
        program = shutil.which(entry.command, path=self._path) if entry.command else None
        if program is None:
            return None, ""
        program = os.path.abspath(program)
        known = self.version(entry, program)
        rows = [each for each in entry.versions if wanted in (None, each.version)]
        for row in rows:
            if known == (row.says or row.version):
                return (program, row.version), ""
        able = [row.says or row.version for row in rows] or [str(wanted)]
        says = f"is version {known}" if known else "does not tell its version"
        return None, (
            f"{program} is not used: it {says}, and flags are known for {', '.join(able)} (give "
            "its path to use it all the same)"
        )

    def version(self, entry: EngineEntry, program: str) -> str | None:
        """The version of a program, None where it cannot be told cheaply."""
        if program not in self._known:
            self._known[program] = (
                _of_distribution(entry.distribution, Path(program))
                if entry.distribution
                else _said(program, entry)
            )
        return self._known[program]


def _said(program: str, entry: EngineEntry) -> str | None:
    argv = entry.default.version_argv
    if not argv:
        return None
    try:
        answer = subprocess.run(
            [program, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stdout.decode(errors="replace"))
    return found[1] if found else None


def _of_distribution(name: str, script: Path) -> str | None:
    """The version of `name` among the packages of the interpreter that runs `script`."""
    interpreter = _interpreter(script)
    if interpreter is None:
        return None
    prefix = interpreter.parent.parent
    places = [str(each) for each in prefix.glob("lib/python3*/site-packages")]
    for found in metadata.distributions(name=name, path=places):
        return found.version.partition("+")[0]
    return None


def _interpreter(script: Path) -> Path | None:
    """From the first lines of a console script, in the short and in the long-path form."""
    try:
        with script.open("rb") as file:
            head = file.read(2048).decode(errors="replace").splitlines()[:2]
    except OSError:
        return None
    for line in head:
        if found := re.search(r"(?:^#!|'''exec'\s+\"?)(/[^\"\s]*python[0-9.]*)", line):
            return Path(found[1])
    return None
