"""One isolated Python environment per engine and version, made with uv where it is, else pip.

An environment counts as installed when its marker file names the very packages that are required;
anything else in its place is removed and made anew, so an interrupted installation heals itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from engine_launchers.base import EngineRequirement
from orchestrator.errors import EngineMissing

Progress = Callable[[str, float], None]
"""Called with the latest line of output and the seconds since the installation began."""

MARKER = "engineroom.json"
_NEEDS_BYTES = 2 * 2**30


class Environments:
    """The folder of engine environments."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        # Build scripts are strangers: our keys are not for them.
        self._environment = {
            k: v for k, v in environment.items() if not k.startswith("ENGINEROOM_")
        }

    def path(self, need: EngineRequirement) -> Path:
        """Where this engine version lives."""
        return self.folder / f"{need.engine}-{need.version}"

    def python(self, need: EngineRequirement) -> str:
        """The interpreter of its environment."""
        return str(self.path(need) / "bin" / "python")

    def installed(self, need: EngineRequirement) -> bool:
        """Whether exactly these packages are there, whole."""
        try:
            marker = json.loads((self.path(need) / MARKER).read_text())
        except (OSError, ValueError):
            return False
        return bool(marker == _marker(need)) and os.access(self.python(need), os.X_OK)

    def preflight(self, need: EngineRequirement) -> None:
        """Raise EngineMissing, in one sentence, where an installation could not succeed."""
        path = self._environment.get("PATH", os.defpath)
        if need.needs_compiler:
            for tools, package in ((("c++", "g++", "clang++"), "g++"), (("make", "ninja"), "make")):
                if not any(shutil.which(tool, path=path) for tool in tools):
                    raise EngineMissing(
                        f"engine {need.engine} is built on this machine and needs {tools[0]}, "
                        f"which is missing: install it (Debian, Ubuntu: apt install {package})"
                    )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < _NEEDS_BYTES:
            raise EngineMissing(
                f"engine {need.engine} needs 2 GiB of disk to install, {self.folder} has "
                f"{free / 2**30:.1f} GiB free"
            )

    async def install(self, need: EngineRequirement, progress: Progress) -> None:
        """Make the environment unless it is there. Raises EngineMissing with the reason."""
        if self.installed(need):
            return
        self.preflight(need)
        async with self._locked(need):
            if self.installed(need):  # another process made it while we waited
                return
            target = self.path(need)
            shutil.rmtree(target, ignore_errors=True)
            began = time.monotonic()
            for argv in self._commands(need):
                await self._run(argv, need, began, progress)
            check = [self.python(need) if word == "{python}" else word for word in need.check]
            await self._run(check, need, began, progress)
            (target / MARKER).write_text(json.dumps(_marker(need)))

    def _commands(self, need: EngineRequirement) -> list[list[str]]:
        target = str(self.path(need))
        # A wheel in an installer's cache may have been built with other flags.
        fresh = ["--no-cache-dir"] if need.needs_compiler else []
        uv = shutil.which("uv", path=self._environment.get("PATH"))
        if uv is None:
            pip = [self.python(need), "-m", "pip", "install", "--no-input", *fresh, *need.packages]
            return [[sys.executable, "-m", "venv", target], pip]
        links = self._environment.get("PIP_FIND_LINKS")
        found = [word for link in (links or "").split() for word in ("--find-links", link)]
        install = [uv, "pip", "install", "--python", self.python(need), "--compile-bytecode"]
        return [
            [uv, "venv", "--python", sys.executable, target],
            [*install, *found, *need.packages],
        ]

    async def _run(
        self, argv: list[str], need: EngineRequirement, began: float, progress: Progress
    ) -> None:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**self._environment, **need.build_env},
            limit=1 << 20,
            start_new_session=True,
        )
        lines: list[str] = []
        reader = asyncio.create_task(self._read(process, lines))
        try:
            while not reader.done():
                await asyncio.wait({reader}, timeout=1.0)
                progress(lines[-1] if lines else Path(argv[0]).name, time.monotonic() - began)
            code = await process.wait()
        finally:
            if process.returncode is None:  # given up: compilers and all
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            reader.cancel()
        if code != 0:
            log = self.folder / f"{need.engine}-{need.version}.log"
            log.write_text("\n".join(lines) + "\n")
            errors = [line for line in lines if "error" in line.lower()]
            last = (errors or lines or ["no output"])[-1].strip()
            raise EngineMissing(
                f"engine {need.engine} {need.version} could not be installed: {last} (log: {log})"
            )

    @staticmethod
    async def _read(process: asyncio.subprocess.Process, lines: list[str]) -> None:
        if process.stdout is not None:
            async for raw in process.stdout:
                if text := raw.decode(errors="replace").strip():
                    lines.append(text)

    @contextlib.asynccontextmanager
    async def _locked(self, need: EngineRequirement) -> AsyncIterator[None]:
        with (self.folder / f"{need.engine}-{need.version}.lock").open("w") as file:
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
            yield


def _marker(need: EngineRequirement) -> dict[str, object]:
    built_for = None if need.built_for is None else list(need.built_for)
    return {"packages": list(need.packages), "built_for": built_for, "build_env": need.build_env}
