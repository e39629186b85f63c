"""The folder of engine environments: what is there, what can be used, and making what is missing.

One environment per engine, version and flavour. It counts as installed when its marker names the
very things that are required; anything else in its place is removed and made anew, so an
interrupted installation heals itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Literal

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value
from orchestrator.engines.choosing import Requirement, refusal, requirement
from orchestrator.engines.installing import Installation
from orchestrator.engines.marker import Marker, marker, read_marker
from orchestrator.engines.onpath import OnPath
from orchestrator.engines.recipe import Installer
from orchestrator.engines.running import CommandFailed, Job, Progress, child_environment
from orchestrator.engines.table import EngineTable, load_engine_table
from orchestrator.errors import EngineMissing

_GIB = 2**30
_LOOK_S = 0.2


class Engine(Value):
    """An engine that can be started now. `program` is absolute; `flavour` None where unknown."""

    name: EngineName
    version: str
    origin: Literal["installed", "PATH", "path"]
    program: str
    flavour: str | None = None


class Installed(Value):
    """One environment of the shelf, and what its marker says."""

    engine: EngineName
    version: str
    flavour: str
    folder: Path
    marker: Marker


class Shelf:
    """Every engine of this user's, in `folder`; what builds may keep lies in `cache`."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        table: EngineTable | None = None,
        cache: Path | None = None,
    ) -> None:
        self.folder = folder
        self.table = load_engine_table() if table is None else table
        self._environment = child_environment(environment)
        self.cache = cache or folder / ".cache"
        self._on_path = OnPath(environment.get("PATH", os.defpath))

    # --- looking --------------------------------------------------------------------------------

    def installed(self) -> list[Installed]:
        """Every whole environment, in the order of the table: newest versions first."""
        found = []
        for folder in sorted(self.folder.glob("*")) if self.folder.is_dir() else []:
            if (said := read_marker(folder)) and os.access(folder / said.program, os.X_OK):
                row = Installed(
                    engine=said.engine,
                    version=said.version,
                    flavour=said.flavour,
                    folder=folder,
                    marker=said,
                )
                found.append(row)
        return sorted(found, key=self._rank)

    def _rank(self, row: Installed) -> tuple[int, int, int]:
        engines = list(self.table.engines)
        entry = self.table.engines.get(row.engine)
        versions = [each.version for each in entry.versions] if entry else []
        version = entry.version(row.version) if entry else None
        flavours: list[str] = list(version.flavours) if version else []
        return (
            engines.index(row.engine) if row.engine in engines else len(engines),
            versions.index(row.version) if row.version in versions else len(versions),
            flavours.index(row.flavour) if row.flavour in flavours else len(flavours),
        )

    def find(
        self,
        engine: EngineName,
        hardware: HardwareProfile,
        *,
        version: str | None = None,
        path: Path | None = None,
    ) -> Engine | Requirement:
        """An engine that can be used now, else what would have to be installed.

        In this order: the program at `path`; the environment of `version`, or of the newest; where
        no version is asked for, those of older ones; the program on PATH. Raises EngineMissing, in
        one sentence, where none is there and none can be installed on `hardware`.
        """
        if path is not None:
            return self._given(engine, path)
        need, why = self._wanted(engine, hardware, version)
        for row in self._usable(engine, hardware, version, need):
            return self._engine(row)
        found, refused = self._on_path.find(engine, self.table.engines[engine], version)
        if found:
            program, known = found
            return Engine(name=engine, version=known, origin="PATH", program=program)
        if need is None:
            raise EngineMissing("; ".join(filter(None, (why, refused))))
        return need.model_copy(update={"note": refused}) if refused else need

    def _wanted(
        self, engine: EngineName, hardware: HardwareProfile, version: str | None
    ) -> tuple[Requirement | None, str]:
        """What would be installed, or why nothing can be. Raises where there is no such engine."""
        try:
            return requirement(self.table, engine, hardware, version), ""
        except EngineMissing as error:
            if engine not in self.table.engines:
                raise
            return None, error.message

    def _usable(
        self,
        engine: EngineName,
        hardware: HardwareProfile,
        version: str | None,
        need: Requirement | None,
    ) -> Iterator[Installed]:
        """Environments that are as the table wants them and run on `hardware`, best first."""
        rows = [row for row in self.installed() if row.engine == engine]
        if version is not None:
            rows = [row for row in rows if row.version == version]
        unasked = need.flavour if need else None
        newest = self.table.engines[engine].default.version
        rows.sort(key=lambda row: (row.version != newest, row.flavour != unasked))
        for row in rows:
            known = self.table.engines[engine].version(row.version)
            name = (
                next((each for each in known.flavours if each == row.flavour), None)
                if known
                else None
            )
            if known is None or name is None or refusal(engine, known, name, hardware):
                continue
            with contextlib.suppress(EngineMissing):  # another Python by now: not usable
                same = requirement(self.table, engine, hardware, row.version, row.flavour)
                if marker(same) == row.marker:
                    yield row

    def _engine(self, row: Installed) -> Engine:
        return Engine(
            name=row.engine,
            version=row.version,
            origin="installed",
            program=str(row.folder / row.marker.program),
            flavour=row.flavour,
        )

    def _given(self, engine: EngineName, path: Path) -> Engine:
        entry = self.table.engines[engine]
        program = path.expanduser().absolute()
        if program.is_dir():
            program = program / entry.program
        if not program.is_file() or not os.access(program, os.X_OK):
            raise EngineMissing(f"engine {engine}: {program} is not a program that can be run")
        known = self._on_path.version(entry, str(program))
        return Engine(name=engine, version=known or "unknown", origin="path", program=str(program))

    # --- making ---------------------------------------------------------------------------------

    def path(self, need: Requirement) -> Path:
        """Where this engine, version and flavour lies, or would.

        The flavour is in the name only where it is not the one that the machine gets unasked, or
        where another flavour has the plain name already.
        """
        plain = self.folder / f"{need.engine}-{need.version}"
        other = plain.with_name(f"{plain.name}-{need.flavour}")
        for folder in (plain, other):
            if (said := read_marker(folder)) and said.flavour == need.flavour:
                return folder
        return plain if need.main and read_marker(plain) is None else other

    def preflight(self, need: Requirement) -> None:
        """Raise EngineMissing, in one sentence, where an installation could not succeed."""
        path = self._environment.get("PATH", os.defpath)
        if need.needs_compiler and not any(
            shutil.which(tool, path=path) for tool in ("c++", "g++", "clang++")
        ):
            raise EngineMissing(
                f"engine {need.engine} is built on this machine and needs c++, which is missing: "
                "install it (Debian, Ubuntu: apt install g++)"
            )
        for tool, has in need.needs.items():
            if not shutil.which(tool, path=path):
                raise EngineMissing(
                    f"engine {need.engine} ({need.flavour}) is built on this machine and needs "
                    f"{tool}, which is missing: install {has}"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < need.disk_bytes:
            raise EngineMissing(
                f"engine {need.engine} needs {need.disk_bytes / _GIB:.0f} GiB of disk to install, "
                f"{self.folder} has {free / _GIB:.1f} GiB free"
            )

    async def install(self, need: Requirement, progress: Progress) -> Engine:
        """Make the environment unless it is there. Raises EngineMissing with the reason."""
        if found := self._whole(need):
            return found
        self.preflight(need)
        target = self.path(need)
        async with self._locked(target, progress) as held:
            if found := self._whole(need):  # another process made it while we waited
                return found
            log = self.folder / f"{target.name}.log"
            job = Job(log, self._environment, progress, held)
            work = Installation(need, target, self.cache, self._installer(), job)
            try:
                await work.run()
            except (CommandFailed, OSError) as error:
                raise EngineMissing(
                    f"engine {need.engine} {need.version} could not be installed: {error} "
                    f"(log: {log})"
                ) from error
            log.unlink(missing_ok=True)
        if found := self._whole(need):
            return found
        raise EngineMissing(
            f"engine {need.engine} {need.version} was installed, and {target / need.program} is "
            "not there: remove the environment and tell us"
        )

    def _whole(self, need: Requirement) -> Engine | None:
        for row in self.installed():
            if row.marker == marker(need):
                return self._engine(row)
        return None

    def _installer(self) -> Installer:
        uv = shutil.which("uv", path=self._environment.get("PATH"))
        links = tuple(self._environment.get("PIP_FIND_LINKS", "").split())
        return Installer(sys.executable, uv, links)

    @contextlib.asynccontextmanager
    async def _locked(self, target: Path, progress: Progress) -> AsyncIterator[int]:
        """Hold the environment for ourselves; gives the lock's descriptor."""
        began = asyncio.get_running_loop().time()
        with (self.folder / f"{target.name}.lock").open("w") as file:
            while not _try_lock(file.fileno()):
                waited = asyncio.get_running_loop().time() - began
                progress("another process installs it: waiting", waited)
                await asyncio.sleep(_LOOK_S)
            yield file.fileno()


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
