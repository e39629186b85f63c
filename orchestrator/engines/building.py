"""Compiles an engine from a source package, in a tree that is kept: a build goes on where it was.

::

    CACHE/sources/<package>/           the unpacked source package
    CACHE/builds/tools-<digest>/       an environment with CMake, Ninja and the build backend
    CACHE/builds/<digest>/             one build tree for sources, definitions, variables and
                                       processor; engines of the same sources share it

All of it may be deleted at any time; then it is made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path

import psutil

from orchestrator.engines.choosing import Compile
from orchestrator.engines.locks import locked
from orchestrator.engines.recipe import Installer
from orchestrator.engines.running import CommandFailed, Job
from orchestrator.resources import processors

_BYTES_PER_JOB = 3 * 2**29  # the largest files of llama.cpp take about 1.2 GiB to compile
_NICE = 5


def digest(source: Compile, isa: tuple[str, ...]) -> str:
    """The name of a build tree: equal where every object file would be."""
    facts = [source.package, source.folder, source.define, source.env, sorted(isa)]
    facts += [platform.machine(), platform.system()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def jobs(cores: int, available: int) -> int:
    """Compilers at once: one per core, as far as memory (bytes) goes round, at least one."""
    return max(1, min(cores, available // _BYTES_PER_JOB))


def configure_command(source: Compile, code: Path, tree: Path, tools: Path) -> list[str]:
    """CMake's command line. Libraries are found beside what uses them, wherever that is put."""
    beside = "@loader_path" if platform.system() == "Darwin" else "$ORIGIN"
    define = {
        **source.define,
        "CMAKE_MAKE_PROGRAM": str(tools / "ninja"),
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": beside,
    }
    argv = [str(tools / "cmake"), "-S", str(code / source.folder), "-B", str(tree), "-G", "Ninja"]
    return [*argv, *(f"-D{key}={value}" for key, value in define.items())]


class Build:
    """One build of `source` on a processor with the instruction sets `isa`."""

    def __init__(
        self, source: Compile, isa: tuple[str, ...], cache: Path, installer: Installer, job: Job
    ) -> None:
        self._source, self._cache = source, cache
        self._installer, self._job = installer, job
        self.tree = cache / "builds" / digest(source, isa)
        pins = json.dumps([source.tools, sys.version_info[:2]])
        name = hashlib.sha256(pins.encode()).hexdigest()[:8]
        self._tools = cache / "builds" / f"tools-{name}"
        self._code = cache / "sources" / source.package.replace("==", "-")

    async def run(self) -> None:
        """Fetch, unpack, configure, compile; each only as far as it is not done."""
        async with locked(self.tree.with_suffix(".lock"), self._waiting) as held:
            with self._job.holding(held):
                # Tools and sources are those of other trees, too.
                async with locked(self.tree.with_name("fetch.lock"), self._waiting) as fetching:
                    with self._job.holding(fetching):
                        await self._make_tools()
                        await self._fetch()
                await self._compile()

    async def wheel(self) -> Path | None:
        """The package itself, as a wheel without libraries; None where it is not wanted."""
        if self._source.wheel is None:
            return None
        folder = self.tree / "wheel"
        if not list(folder.glob("*.whl")):
            cmake = " ".join(f"-D{key}={value}" for key, value in self._source.wheel.items())
            argv = [self._tool("python"), "-m", "pip", "wheel", "--no-deps", "--no-cache-dir"]
            argv += ["--no-build-isolation", "--wheel-dir", str(folder), str(self._code)]
            path = f"{self._tools / 'bin'}{os.pathsep}{self._job.environment.get('PATH', '')}"
            env = {"CMAKE_ARGS": cmake, "PATH": path, **self._source.env}
            await self._job.run(argv, env)
        return next(folder.glob("*.whl"))

    def take(self, target: Path) -> None:
        """Copy what was built, and its licence, into the folder `target`."""
        target.mkdir(parents=True, exist_ok=True)
        for pattern in self._source.take:
            found = sorted((self.tree / "bin").glob(pattern))
            if not found:
                raise CommandFailed(f"the build made no {pattern}")
            for file in found:
                shutil.copy2(file, target / file.name, follow_symlinks=False)
        for file in (self._code / self._source.folder).glob("LICENSE*"):
            shutil.copy2(file, target / f"{file.name}.{Path(self._source.folder).name}")

    def _tool(self, name: str) -> str:
        return str(self._tools / "bin" / name)

    def _waiting(self) -> None:
        self._job.tell("another process builds it: waiting")

    async def _make_tools(self) -> None:
        done = self._tools / "done"
        if done.exists():
            return
        shutil.rmtree(self._tools, ignore_errors=True)
        await self._job.run(self._installer.venv(self._tools, seeded=True), what="getting tools")
        await self._job.run(self._installer.install(self._tool("python"), self._source.tools))
        done.touch()

    async def _fetch(self) -> None:
        if self._code.is_dir():
            return
        folder = self._code.parent
        name, _, version = self._source.package.partition("==")
        argv = [self._tool("python"), "-m", "pip", "download", "--no-deps", "--no-input"]
        argv += ["--no-binary", name, "--no-build-isolation", "--dest", str(folder)]
        path = f"{self._tools / 'bin'}{os.pathsep}{self._job.environment.get('PATH', '')}"
        if not _archives(folder, name, version):
            await self._job.run([*argv, self._source.package], {"PATH": path})
        self._job.tell(f"unpacking {self._source.package}")
        await asyncio.to_thread(_unpack, _archives(folder, name, version)[0], self._code)

    async def _compile(self) -> None:
        env = self._source.env
        if not (self.tree / "build.ninja").exists():
            self.tree.mkdir(parents=True, exist_ok=True)
            configure = configure_command(self._source, self._code, self.tree, self._tools / "bin")
            await self._job.run(configure, env)
        count = jobs(processors(), psutil.virtual_memory().available)
        nice = ["nice", "-n", str(_NICE)] if shutil.which("nice") else []
        argv = [self._tool("cmake"), "--build", str(self.tree), "--target", self._source.target]
        await self._job.run(
            [*nice, *argv, "--parallel", str(count)], env, what=f"compiling {self._source.target}"
        )


def _archives(folder: Path, name: str, version: str) -> list[Path]:
    written = {name, name.replace("-", "_")}
    return [path for each in written if (path := folder / f"{each}-{version}.tar.gz").is_file()]


def _unpack(archive: Path, target: Path) -> None:
    draft = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(draft, ignore_errors=True)
    with tarfile.open(archive) as packed:
        packed.extractall(draft, filter="data")
    (inside,) = draft.iterdir()
    inside.rename(target)
    draft.rmdir()
    archive.unlink()
