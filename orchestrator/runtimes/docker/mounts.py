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
    """What has to be mounted so that `files` can be read: folders whole, with what their links
    point to, and every part of a split GGUF file. Raises LaunchFailed for what is not there.
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
    """Folders outside of it that links in it point to, as they do in a hub's cache."""
    links = [each for each in folder.rglob("*") if each.is_symlink()]
    ends = (os.path.normpath(each.parent / os.readlink(each)) for each in links)
    return {Path(end).parent for end in ends if not Path(end).is_relative_to(folder)}


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
