"""The folder of engine environments: what is there, what can be used, and making what is missing.

One environment per engine, version and flavour. It counts as installed when its marker names the
very things that are required; anything else in its place is removed and made anew, so an
interrupted installation heals itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value
from orchestrator.engines.choosing import Requirement, no_card, numbers, requirement
from orchestrator.engines.installing import ASIDE, Installation
from orchestrator.engines.locks import locked, try_lock
from orchestrator.engines.marker import Marker, read_marker
from orchestrator.engines.onpath import OnPath
from orchestrator.engines.preflight import missing_tools, preflight
from orchestrator.engines.recipe import Installer
from orchestrator.engines.removing import GOING, clear, remove
from orchestrator.engines.running import CommandFailed, Job, Progress, child_environment
from orchestrator.engines.table import EngineEntry, EngineTable, FlavourName, load_engine_table
from orchestrator.errors import EngineMissing

_FLAVOURS: tuple[str, ...] = get_args(FlavourName)


class Engine(Value):
    """One that can be started: a program, absolute, or what is run in `image`."""

    name: EngineName
    version: str
    origin: Literal["installed", "PATH", "path", "image"]
    program: str
    flavour: str | None = None
    image: str | None = None


class Installed(Value):
    """One environment of the shelf, and what its marker says."""

    engine: EngineName
    version: str
    flavour: FlavourName
    folder: Path
    marker: Marker


class Removed(Value):
    """What was removed: an environment, or what an interrupted installation had left."""

    engine: EngineName
    version: str
    folder: Path


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
        for folder in self._folders():
            if (said := read_marker(folder)) and os.access(folder / said.program, os.X_OK):
                row = Installed(
                    engine=said.engine,
                    version=said.version,
                    flavour=said.flavour,
                    folder=folder,
                    marker=said,
                )
                found.append(row)
        found.sort(key=lambda row: numbers(row.version), reverse=True)
        return sorted(found, key=self._rank)

    def halves(self, engine: EngineName) -> list[Path]:
        """Folders in the place of this engine's environments that are none: never finished."""
        whole = {row.folder for row in self.installed()}
        mine = [each for each in self._folders() if each.name.startswith(f"{engine}-")]
        return [folder for folder in mine if folder.is_dir() and folder not in whole]

    def _folders(self) -> list[Path]:
        """The places of environments, without the names that mean something set aside."""
        found = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [each for each in found if not each.name.startswith(".")]

    def _rank(self, row: Installed) -> tuple[int, int, int]:
        engines = list(self.table.engines)
        entry = self.table.engines.get(row.engine)
        versions = [each.version for each in entry.versions] if entry else []
        version = entry.version(row.version) if entry else None
        flavours: list[str] = list(version.flavours if version else _FLAVOURS)
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
        no version is asked for, those of older ones; the program on PATH. An environment whose
        version has left the table can be used all the same. Raises EngineMissing, in one sentence,
        where none is there and none can be installed on `hardware`.
        """
        if path is not None:
            return self._given(engine, path)
        for row in self.installed():  # best first
            asked = row.engine == engine and version in (None, row.version)
            if asked and self.objection(row, hardware) is None:
                return self._engine(row)
        found, refused = self._on_path.find(self._entry(engine), version)
        if found:
            program, known = found
            return Engine(name=engine, version=known, origin="PATH", program=program)
        try:
            need = self.wanted(engine, hardware, version)
        except EngineMissing as error:
            raise EngineMissing("; ".join(filter(None, (error.message, refused)))) from error
        return need.model_copy(update={"note": refused}) if refused else need

    def wanted(
        self,
        engine: EngineName,
        hardware: HardwareProfile,
        version: str | None = None,
        flavour: str | None = None,
    ) -> Requirement:
        """What would be installed: `requirement`, or the processor's build, with a note that says
        why, where no flavour is asked for and what the GPU's build calls is missing.
        """
        need = requirement(self.table, engine, hardware, version, flavour)
        missing = missing_tools(need, self.environment.get("PATH", os.defpath))
        if flavour is not None or not missing:
            return need
        try:
            plain = requirement(self.table, engine, hardware, need.version, "cpu")
        except EngineMissing:  # it is for GPUs only: the installation will say what is missing
            return need
        tool, has = next(iter(missing.items()))
        note = f"built for the processor, since {tool} is missing: install {has} to use the GPU"
        return plain.model_copy(update={"note": note})

    def listed(self, row: Installed) -> bool:
        """Whether the table still has this version; its marker alone speaks for another one."""
        entry = self.table.engines.get(row.engine)
        return entry is not None and entry.version(row.version) is not None

    def objection(self, row: Installed, hardware: HardwareProfile) -> str | None:
        """Why an environment cannot be used on `hardware` as it is; None where it can."""
        said = row.marker
        if not self.listed(row):
            what = f"{row.engine} {row.version} ({row.flavour})"
            return no_card(what, row.flavour, hardware) or _elsewhere(said, hardware.isa)
        try:
            need = requirement(self.table, row.engine, hardware, row.version, row.flavour)
        except EngineMissing as error:
            return error.message
        if why := _elsewhere(said, need.built_for):
            return why
        return None if said.holds(need) else "made for other pins than this version's"

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
        preflight(need, self.folder, self.environment.get("PATH", os.defpath))

    async def install(self, need: Requirement, progress: Progress) -> Engine:
        """Make the environment unless it is there. Raises EngineMissing with the reason.

        What was in its place is put back where this fails, and is not touched while it runs.
        """
        await asyncio.to_thread(self._sweep)
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
            work = Installation(need, target, self.cache, self.installer(), job)
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
            if row.marker.holds(need):
                return self._engine(row)
        return None

    def installer(self) -> Installer:
        """What makes environments here: the uv on PATH or beside us, else pip."""
        own = Path(sys.executable).parent  # a uv that is installed beside us is as good
        places = os.pathsep.join((self.environment.get("PATH", os.defpath), str(own)))
        uv = shutil.which("uv", path=places)
        links = tuple(self.environment.get("PIP_FIND_LINKS", "").split())
        return Installer(sys.executable, uv, links)

    # --- removing -------------------------------------------------------------------------------

    def remove(
        self, engine: EngineName, version: str | None = None, flavour: str | None = None
    ) -> Removed:
        """Remove one environment, whole or half, and say which. Raises EngineMissing where not.

        It has to be the only one that `version` and `flavour` leave, nothing may run from it, and
        no other process may be installing it.
        """
        self._sweep()
        whole = [row for row in self.installed() if row.engine == engine]
        found = [
            Removed(engine=engine, version=row.version, folder=row.folder)
            for row in whole
            if version in (None, row.version) and flavour in (None, row.flavour)
        ]
        for folder in [] if found else self.halves(engine):
            rest = folder.name.removeprefix(f"{engine}-")
            if version is None or rest in (version, f"{version}-{flavour or 'cpu'}"):
                found.append(Removed(engine=engine, version=rest, folder=folder))
        if len(found) != 1:
            names = [f"{row.version} ({row.flavour})" for row in whole]
            names += [] if whole else [f"half of {each.version}" for each in found]
            many = "say which with --version and --flavour" if found else "nothing to remove"
            text = ", ".join(names) or "no version"
            raise EngineMissing(f"engine {engine}: {text} is installed: {many}")
        (gone,) = found
        with (self.folder / f"{gone.folder.name}.lock").open("w") as lock:
            if not try_lock(lock.fileno()):
                raise EngineMissing(f"{gone.folder.name} is being installed by another process")
            remove(gone.folder)
        return gone

    def _sweep(self) -> None:
        """Bring to an end what was interrupted, unless another process is at it."""
        for begin in (GOING, ASIDE):
            for folder in self.folder.glob(f"{begin}*"):
                place = folder.with_name(folder.name.removeprefix(begin))
                with (self.folder / f"{place.name}.lock").open("w") as lock:
                    if not try_lock(lock.fileno()):
                        continue
                    if begin == GOING or read_marker(place):
                        clear(folder)
                    else:  # what was to replace it never got whole
                        clear(place)
                        folder.rename(place)


def _elsewhere(said: Marker, built_for: tuple[str, ...] | None) -> str | None:
    """Why what was compiled cannot run on a processor with other instruction sets."""
    if said.built_for in (None, built_for):
        return None
    return f"built for a processor with {' '.join(said.built_for)}"
