"""Which files of this machine a container sees, and under which paths: those they have here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import LaunchFailed

Mount = tuple[str, str]
"""Where it lies for the Docker Engine, and where the container sees it."""

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_OWN = re.compile(r"/(?:containers|overlay-containers)/([0-9a-f]{64})/(?:userdata/)?hostname ")


def wanted(files: Iterable[str]) -> tuple[Mount, ...]:
    """What has to be mounted so that `files` can be read: folders whole, with the files that their
    links point to, and every part of a split GGUF file. Raises LaunchFailed for what is not there.
    """
    found: dict[str, str] = {}
    for name in files:
        path = Path(os.path.abspath(name))
        if not path.exists():
            raise LaunchFailed(f"{path}: is not there, and the container would need it")
        for each in (path, *(_linked(path) if path.is_dir() else _parts(path))):
            found[str(each)] = os.path.realpath(each)
    return tuple((source, target) for target, source in sorted(found.items()))


def _parts(path: Path) -> list[Path]:
    if not _PART.search(path.name):
        return []
    pattern = re.compile(re.escape(_PART.sub("", path.name)) + _PART.pattern)
    return [each for each in path.parent.iterdir() if pattern.fullmatch(each.name)]


def _linked(folder: Path) -> set[Path]:
    """What links in it point to outside of it: each file by itself, a hub's blobs whole.

    Raises LaunchFailed for a folder: what lies there too was never meant to be seen.
    """
    blobs = {each.parent / "blobs" for each in folder.parents if each.name == "snapshots"}
    found: set[Path] = set()
    for link in folder.rglob("*"):
        end = Path(os.path.normpath(link.parent / os.readlink(link))) if link.is_symlink() else link
        if end.is_relative_to(folder) or not end.exists():
            continue
        if end.parent not in blobs and end.is_dir():
            raise LaunchFailed(f"{link}: is a link to a folder elsewhere: put a copy in its place")
        found.add(end.parent if end.parent in blobs else end)
    return found


def own_container(mountinfo: str) -> str | None:
    """The id of the container that this process runs in, from /proc/self/mountinfo."""
    found = _OWN.search(mountinfo)
    return found[1] if found else None


def translated(mounts: Sequence[Mount], own: Sequence[Mapping[str, Any]]) -> tuple[Mount, ...]:
    """`mounts` of a process that is in a container itself, as the Docker Engine has to be told.

    `own` are that container's mounts. Raises LaunchFailed for what lies in no volume of it.
    """
    return tuple((_outside(source, own), target) for source, target in mounts)


def _outside(path: str, own: Sequence[Mapping[str, Any]]) -> str:
    holding = [
        each
        for each in own
        if each.get("Source") and Path(path).is_relative_to(each["Destination"])
    ]
    if not holding:
        raise LaunchFailed(
            f"{path}: lies inside this container, where no other one sees it: keep models on a "
            "volume, or in a folder of the machine that is mounted here"
        )
    nearest = max(holding, key=lambda each: len(each["Destination"]))
    rest = os.path.relpath(path, nearest["Destination"])
    return os.path.normpath(os.path.join(nearest["Source"], rest))
