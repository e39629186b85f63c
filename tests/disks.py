"""Disks that fill up and turn read-only: a small mount, or the nearest thing without the right."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """A folder whose disk can be spoiled, and mended again."""

    path: Path

    def fill(self) -> None:
        """Leave no room on it."""

    def free(self) -> None:
        """Make room again."""

    def lock(self) -> None:
        """Make it read-only; nothing on it may be open for writing."""

    def unlock(self) -> None:
        """Make it writable again."""


class Mounted:
    """A file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """See Disk."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:  # no room for a piece of that size
                    continue

    def free(self) -> None:
        """See Disk."""
        (self.path / "ballast").unlink()

    def lock(self) -> None:
        """See Disk."""
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)

    def unlock(self) -> None:
        """See Disk."""
        subprocess.run(["mount", "-o", "remount,rw", self.path], check=True)


class Limited:
    """A folder on the common disk: file sizes are limited, permissions taken away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """See Disk: no file of this process, which ignores SIGXFSZ, can grow."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, self._before[1]))

    def free(self) -> None:
        """See Disk."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)

    def lock(self) -> None:
        """See Disk."""
        self._allow(0o500, 0o400)

    def unlock(self) -> None:
        """See Disk."""
        self._allow(0o700, 0o600)

    def _allow(self, folders: int, files: int) -> None:
        self.path.chmod(0o700)
        for each in self.path.rglob("*"):
            each.chmod(folders if each.is_dir() else files)
        self.path.chmod(folders)


@contextmanager
def small_disk(path: Path, size: str = "1m") -> Iterator[Disk]:
    """A disk at `path`, mounted where this user may mount."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        try:
            yield Mounted(path)
        finally:
            subprocess.run(["umount", "--lazy", path], check=True)
        return
    limited = Limited(path)
    try:
        yield limited
    finally:
        limited.free()
        if os.getuid():
            limited.unlock()
