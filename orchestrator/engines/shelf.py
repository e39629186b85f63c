"""The folder of engine environments: what is there, what can be used, and making what is missing.

One environment per engine, version and flavour. It counts as installed when its marker names the
very things that are required; anything else in its place is removed and made anew, so an
interrupted installation heals itself.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value
from orchestrator.engines.choosing import Requirement, requirement
from orchestrator.engines.installing import Installation
from orchestrator.engines.locks import locked, try_lock
from orchestrator.engines.marker import Marker, marker, read_marker
from orchestrator.engines.onpath import OnPath
from orchestrator.engines.recipe import Installer
from orchestrator.engines.removing import remove
from orchestrator.engines.running import CommandFailed, Job, Progress, child_environment
from orchestrator.engines.table import EngineEntry, EngineTable, load_engine_table
from orchestrator.errors import EngineMissing

_GIB = 2**30


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
        self.environment = child_environment(environment)
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
        found, refused = self._on_path.find(self._entry(engine), version)
        if found:
            program, known = found
            return Engine(name=engine, version=known, origin="PATH", program=program)
        if need is None:
            raise EngineMissing("; ".join(filter(None, (why, refused))))
        return need.model_copy(update={"note": refused}) if refused else need

    def _wanted(
        self, engine: EngineName, hardware: HardwareProfile, version: str | None
    ) -> tuple[Requirement | None, str]:
        """What would be installed, or why nothing can be."""
        try:
            need = requirement(self.table, engine, hardware, version)
            return self._buildable(need, hardware), ""
        except EngineMissing as error:
            return None, error.message

    def _buildable(self, need: Requirement, hardware: HardwareProfile) -> Requirement:
        """The requirement, or the processor's build where what the GPU's build calls is missing."""
        path = self.environment.get("PATH", os.defpath)
        tools = need.source.needs if need.source else {}
        missing = [tool for tool in tools if not shutil.which(tool, path=path)]
        if not missing:
            return need
        try:
            plain = requirement(self.table, need.engine, hardware, need.version, "cpu")
        except EngineMissing:  # it is for GPUs only: the installation will say what is missing
            return need
        tool, has = missing[0], tools[missing[0]]
        note = f"built for the processor, since {tool} is missing: install {has} to use the GPU"
        return plain.model_copy(update={"note": note})

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
        newest = self._entry(engine).default.version
        rows.sort(key=lambda row: (row.version != newest, row.flavour != unasked))
        yield from (row for row in rows if self.objection(row, hardware) is None)

    def objection(self, row: Installed, hardware: HardwareProfile) -> str | None:
        """Why an environment cannot be used on `hardware` as it is; None where it can."""
        try:
            need = requirement(self.table, row.engine, hardware, row.version, row.flavour)
        except EngineMissing as error:
            return error.message
        said = row.marker
        if said.built_for is not None and said.built_for != need.built_for:
            return f"built for a processor with {' '.join(said.built_for)}"
        if said != marker(need):
            return "made for other pins than this version's"
        return None

    def on_path(self, engine: EngineName, version: str | None = None) -> Engine | None:
        """The program that somebody else installed, where it can be used."""
        found, _ = self._on_path.find(self._entry(engine), version)
        if found is None:
            return None
        return Engine(name=engine, version=found[1], origin="PATH", program=found[0])

    def _entry(self, engine: EngineName) -> EngineEntry:
        entry = self.table.engines.get(engine)
        if entry is None:
            known = ", ".join(self.table.engines)
            raise EngineMissing(f"no engine is called {engine}: this version installs {known}")
        return entry

    def _engine(self, row: Installed) -> Engine:
        return Engine(
            name=row.engine,
            version=row.version,
            origin="installed",
            program=str(row.folder / row.marker.program),
            flavour=row.flavour,
        )

    def _given(self, engine: EngineName, path: Path) -> Engine:
        entry = self._entry(engine)
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
        path = self.environment.get("PATH", os.defpath)
        if need.needs_compiler and not any(
            shutil.which(tool, path=path) for tool in ("c++", "g++", "clang++")
        ):
            raise EngineMissing(
                f"engine {need.engine} is built on this machine and needs c++, which is missing: "
                "install it (Debian, Ubuntu: apt install g++)"
            )
        for tool, has in (need.source.needs if need.source else {}).items():
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
        began = time.monotonic()

        def waiting() -> None:
            progress("another process installs it: waiting", time.monotonic() - began)

        async with locked(self.folder / f"{target.name}.lock", waiting) as held:
            if found := self._whole(need):  # another process made it while we waited
                return found
            log = self.folder / f"{target.name}.log"
            job = Job(log, self.environment, progress, held)
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
        own = Path(sys.executable).parent  # a uv that is installed beside us is as good
        places = os.pathsep.join((self.environment.get("PATH", os.defpath), str(own)))
        uv = shutil.which("uv", path=places)
        links = tuple(self.environment.get("PIP_FIND_LINKS", "").split())
        return Installer(sys.executable, uv, links)

    # --- removing -------------------------------------------------------------------------------

    def remove(
        self, engine: EngineName, version: str | None = None, flavour: str | None = None
    ) -> Installed:
        """Remove one environment, and say which. Raises EngineMissing where that cannot be.

        It has to be the only one that `version` and `flavour` leave, nothing may run from it, and
        no other process may be installing it.
        """
        rows = [row for row in self.installed() if row.engine == engine]
        names = ", ".join(f"{row.version} ({row.flavour})" for row in rows) or "no version"
        rows = [
            row for row in rows if version in (None, row.version) and flavour in (None, row.flavour)
        ]
        if len(rows) != 1:
            many = "say which with --version and --flavour" if rows else "nothing to remove"
            raise EngineMissing(f"engine {engine}: {names} is installed: {many}")
        (row,) = rows
        with (self.folder / f"{row.folder.name}.lock").open("w") as lock:
            if not try_lock(lock.fileno()):
                raise EngineMissing(f"{row.folder.name} is being installed by another process")
            remove(row.folder)
        return row
