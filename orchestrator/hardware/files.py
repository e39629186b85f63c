"""Where the parsers read from: this machine's disk, or a recording of another machine's.

Every parser of `hardware` takes a `Files` and nothing else from outside, so that the same code
reads a live /proc and /sys and a fixture. Paths are absolute and use "/".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Small text files of one machine. Nothing here raises: what cannot be read is absent."""

    def read(self, path: str) -> str | None:
        """The text of a file without surrounding white space; None where it cannot be read."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names in a folder, numbers in numeric order; empty where it cannot be listed."""
        ...


@dataclass(frozen=True)
class Disk:
    """The files below `root`."""

    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """See `Files`. A driver may refuse any read of /sys at any time: that is absence too."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return None

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        try:
            return sorted(os.listdir(self.root / folder.lstrip("/")), key=_natural)
        except OSError:
            return []


@dataclass(frozen=True)
class Recorded:
    """Files held in memory, path to text."""

    texts: Mapping[str, str]

    def read(self, path: str) -> str | None:
        """See `Files`."""
        text = self.texts.get(path)
        return None if text is None else text.strip()

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        prefix = folder.rstrip("/") + "/"
        below = (path[len(prefix) :] for path in self.texts if path.startswith(prefix))
        return sorted({rest.split("/")[0] for rest in below}, key=_natural)


def number(text: str | None, base: int = 10) -> int | None:
    """The whole number that a file holds (base 0 also reads 0x…), None where it holds none."""
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


def pairs(text: str | None, separator: str | None = None) -> dict[str, str]:
    """Lines of "key value" as a mapping; lines without a value are left out."""
    found: dict[str, str] = {}
    for line in (text or "").splitlines():
        parts = line.split(separator, 1)
        if len(parts) == 2:
            found[parts[0].strip()] = parts[1].strip()
    return found


def cpu_list(text: str | None) -> frozenset[int]:
    """The kernel's list format, "0-3,8": the numbers it names; empty where it is malformed."""
    found: set[int] = set()
    for part in (text or "").replace("\n", "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _natural(name: str) -> tuple[str, int, str]:
    head = name.rstrip("0123456789")
    tail = name[len(head) :]
    return (head, int(tail) if tail else -1, name)
