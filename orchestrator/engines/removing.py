"""Takes environments away: only where nothing runs from them, and at one stroke for onlookers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

from orchestrator.engines.marker import MARKER
from orchestrator.errors import EngineMissing

GOING = ".removing-"
"""What the name of an environment begins with while it is removed."""


def users_of(folder: Path) -> list[int]:
    """The processes that run from `folder`: by their command lines, or by what they have mapped."""
    place = str(folder) + os.sep
    return [
        process.pid
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _uses(process, place)
    ]


def _uses(process: psutil.Process, place: str) -> bool:
    try:
        if any(word.startswith(place) for word in process.cmdline()):
            return True
        # A worker may have renamed itself; what it mapped it cannot hide.
        with open(f"/proc/{process.pid}/maps", encoding="utf-8", errors="replace") as maps:
            return any(place in line for line in maps)
    except (psutil.Error, OSError):
        return False


def refuse_users(folder: Path) -> None:
    """Raise EngineMissing, naming the processes, while any run from `folder`."""
    if users := users_of(folder):
        raise EngineMissing(
            f"{folder.name} is in use by process {', '.join(map(str, users))}: stop it first "
            "(`engineroom stop --all`)"
        )


def remove(folder: Path) -> None:
    """Remove an environment. Raises EngineMissing, naming the process, while one runs from it."""
    refuse_users(folder)
    going = folder.with_name(f"{GOING}{folder.name}")
    clear(going)
    # First the marker: whatever is left behind by an end half way is no environment.
    (folder / MARKER).unlink(missing_ok=True)
    folder.rename(going)
    clear(going)


def clear(folder: Path) -> None:
    """Remove a folder, or the link that stands in its place; nothing where nothing is."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def size(folder: Path) -> int:
    """Bytes on disk below `folder`, each file once however often it is linked."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(place, name))
            seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())
