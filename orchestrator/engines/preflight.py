"""What an installation needs of the machine beforehand: compilers, tools, space on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrator.engines.choosing import Requirement
from orchestrator.errors import EngineMissing

_GIB = 2**30


def missing_tools(need: Requirement, path: str) -> dict[str, str]:
    """The programs that its build calls and that are not on `path`: each with what has it."""
    tools = need.source.needs if need.source else {}
    return {tool: has for tool, has in tools.items() if not shutil.which(tool, path=path)}


def preflight(need: Requirement, folder: Path, path: str) -> None:
    """Raise EngineMissing, in one sentence, where an installation into `folder` could not succeed.

    `path` is the PATH on which compilers are looked for.
    """
    if need.needs_compiler and not any(
        shutil.which(tool, path=path) for tool in ("c++", "g++", "clang++")
    ):
        raise EngineMissing(
            f"engine {need.engine} is built on this machine and needs c++, which is missing: "
            "install it (Debian, Ubuntu: apt install g++)"
        )
    for tool, has in missing_tools(need, path).items():
        raise EngineMissing(
            f"engine {need.engine} ({need.flavour}) is built on this machine and needs "
            f"{tool}, which is missing: install {has}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need.disk_bytes:
        raise EngineMissing(
            f"engine {need.engine} needs {need.disk_bytes / _GIB:.0f} GiB of disk to install, "
            f"{folder} has {free / _GIB:.1f} GiB free"
        )
