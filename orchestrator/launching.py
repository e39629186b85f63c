"""What a server starts its engines with: every runtime, and the folders that they write to."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator.contradictions import refuse_open
from orchestrator.errors import ConfigError
from orchestrator.listening import address_of
from orchestrator.runtimes.base import Runtime
from orchestrator.runtimes.docker.here import DockerOptions, installation
from orchestrator.runtimes.docker.runtime import DockerRuntime
from orchestrator.runtimes.docker.watcher import Note
from orchestrator.runtimes.external import ExternalRuntime
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime
from orchestrator.settings import Settings

# For `force_cpu`: a build for GPUs opens them even to compute without. No device has the number -1.
_NO_GPUS = dict.fromkeys(
    ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "-1"
)


def private_folder(path: Path) -> Path:
    """Make a 0700 folder, or check that it is ours. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from error
    if not path.is_dir() or path.is_symlink() or found.st_uid != os.getuid():
        raise ConfigError(
            f"{path}: must be a folder of this user: make it its own (chown), remove it, or set "
            "--data-dir"
        )
    path.chmod(0o700)
    return path


def socket_folder(path: Path) -> None:
    """Make the folder of `control_socket`, 0700, or check that nobody else can put a socket of his
    own there. One that is there stays as it is: it may be the machine's. Raises ConfigError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise ConfigError(
            f"control_socket: folder {path} cannot be made: {error.strerror}"
        ) from error
    shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if shared or found.st_uid not in {0, os.getuid()}:
        raise ConfigError(
            f"control_socket: others can replace what lies in {path}: name a socket in a folder "
            "below it, which is made for you, or in one that is yours (chmod go-w)"
        )


class _Runtimes(dict[str, Runtime]):
    """By their names; that for containers is made by the first who asks for it."""

    def __init__(self, docker: Callable[[], DockerRuntime], **others: Runtime) -> None:
        super().__init__(others)
        self._make = docker
        self._docker: DockerRuntime | None = None

    def __missing__(self, name: str) -> Runtime:
        if name != "docker":
            raise KeyError(name)
        self["docker"] = self._docker = self._make()
        return self._docker

    async def close(self) -> None:
        """Let go of the Docker Engine."""
        if self._docker is not None:
            await self._docker.close()


@asynccontextmanager
async def runtimes(
    settings: Settings, run: Path, note: Note
) -> AsyncIterator[Mapping[str, Runtime]]:
    """Every runtime by its name; `run` holds sockets, `note` hears of the Docker Engine.

    That one is reached by the first model that wants a container, not before.
    """
    made = _Runtimes(
        lambda: DockerRuntime(_containers(settings), os.environ, note),
        process=ProcessRuntime(_processes(settings, run), _inherited(settings)),
        external=ExternalRuntime(),
    )
    try:
        yield made
    finally:
        await made.close()


def _inherited(settings: Settings) -> Mapping[str, str]:
    return {**os.environ, **(_NO_GPUS if settings.force_cpu else {})}


def _processes(settings: Settings, run: Path) -> ProcessOptions:
    return ProcessOptions(
        folder=private_folder(settings.data / "instances"),
        logs=private_folder(settings.data / "logs"),
        sockets=run,
        lease_s=settings.lease_s,
        grace_s=settings.stop_grace_s,
        log_max_bytes=settings.log_max_bytes,
        log_files=settings.log_files,
        host=_closed(address_of(settings.engine_host)),
    )


def _closed(host: str) -> str:
    """The address that a name stood for, looked at again. Raises ConfigError."""
    refuse_open(host)
    return host


def _containers(settings: Settings) -> DockerOptions:
    return DockerOptions(
        folder=private_folder(settings.data / "instances"),
        logs=private_folder(settings.data / "logs"),
        installation=installation(settings.data / "installation"),
        network=settings.docker_network,
        log_max_bytes=settings.log_max_bytes,
        log_files=settings.log_files,
    )
