"""What this machine has for a container, and what can be seen of one from here."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_launchers.base import LaunchSpec
from orchestrator.errors import ConfigError
from orchestrator.runtimes.base import Identity
from orchestrator.runtimes.docker import mounts
from orchestrator.runtimes.docker.body import Surroundings
from orchestrator.runtimes.docker.place import Place
from orchestrator.runtimes.shim import kernel

_RESERVE = 1 << 30  # of the machine's memory: an engine that takes it all is killed alone
_RESERVE_SHARE = 0.05
_AMD = ("/dev/kfd", "/dev/dri")


@dataclass(frozen=True)
class DockerOptions:
    """Folders, limits and names. Sizes in bytes, times in seconds.

    `network` is None for one of our own making. What belongs to this installation and is held by
    nobody is removed after `leftover_s`.
    """

    folder: Path
    logs: Path
    installation: str
    network: str | None
    log_max_bytes: int
    log_files: int
    leftover_s: float = 300.0


def installation(file: Path) -> str:
    """The name by which containers are known as this data directory's: made once, kept in `file`.

    A path would not do: servers in containers may all have the same. Raises ConfigError where it
    cannot be kept: what runs under it would never be found again.
    """
    try:
        known = file.read_text().strip() if file.exists() else ""
        if not re.fullmatch(r"[0-9a-f]{12}", known):
            known = secrets.token_hex(6)
            fresh = file.with_name(f"{file.name}.new")
            fresh.write_text(known)
            fresh.replace(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read or written: {error}") from error
    return known


def surroundings(spec: LaunchSpec, place: Place, options: DockerOptions) -> Surroundings:
    """What a container of `spec` is put into. Raises LaunchFailed."""
    found = mounts.wanted(spec.files)
    if place.own is not None:
        found = mounts.translated(found, place.own.get("Mounts") or [])
    amd = any(name.startswith(("HIP_VISIBLE", "ROCR_VISIBLE")) for name in spec.env)
    devices = tuple(each for each in _AMD if amd and os.path.exists(each))
    memory = place.memory - max(_RESERVE, int(_RESERVE_SHARE * place.memory))
    return Surroundings(
        installation=options.installation,
        network=place.network,
        user=(os.getuid(), os.getgid()),
        memory=max(memory, _RESERVE),
        mounts=found,
        devices=devices,
        groups=tuple(sorted({gid for each in devices for gid in _groups(Path(each))})),
        log_max_bytes=options.log_max_bytes,
        log_files=options.log_files,
        podman=place.podman,
    )


def visible(state: Mapping[str, Any], id: str) -> bool:
    """Whether the processes of a container, of which this is the `State`, can be seen from here."""
    try:
        return id in Path(f"/proc/{int(state.get('Pid') or 0)}/cgroup").read_text()
    except OSError:
        return False


def leader(init: int, id: str) -> Identity | None:
    """The engine's own process, the first below the container's init.

    None where it cannot be seen: on another machine, or in another container's view.
    """
    if not init or not visible({"Pid": init}, id):
        return None
    try:
        below = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        return Identity.model_validate(kernel.identity(int(below[0]))) if below else None
    except (OSError, ValueError):
        return None


def _groups(path: Path) -> set[int]:
    """The groups that own a device, or the devices of a folder."""
    files = [path, *path.iterdir()] if path.is_dir() else [path]
    return {each.stat().st_gid for each in files}
