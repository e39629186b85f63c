"""Makes one environment: an empty one, the packages, what they stand for, the check, the marker."""

from __future__ import annotations

from pathlib import Path

from orchestrator.engines.building import Build
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.distributions import add_stand_in, rest_of, site_packages
from orchestrator.engines.marker import read_marker, write_marker
from orchestrator.engines.recipe import OVERRIDES, Installer, override_lines
from orchestrator.engines.removing import clear, refuse_users
from orchestrator.engines.running import Job

ASIDE = ".old-"
"""What the name of an environment begins with while another one is made in its place."""
_EMPTY = "making an empty environment"
_CHECK = "checking that it starts"


class Installation:
    """One run of an installation into `target`, with `cache` for what later ones can use."""

    def __init__(
        self, need: Requirement, target: Path, cache: Path, installer: Installer, job: Job
    ) -> None:
        self._need, self._target = need, target
        self._installer, self._job = installer, job
        self._build = (
            Build(need.source, need.built_for or (), cache, installer, job) if need.source else None
        )

    @property
    def python(self) -> str:
        """The environment's interpreter."""
        return str(self._target / "bin" / "python")

    async def run(self) -> None:
        """From whatever is there to a whole environment.

        What was there before is put back where this fails or is cancelled. Raises EngineMissing
        while a process runs from it, CommandFailed or OSError where a step fails.
        """
        refuse_users(self._target)
        wheel = None
        if self._build:
            await self._build.run()
            wheel = await self._build.wheel()
            refuse_users(self._target)  # compiling took minutes
        # An environment's paths are absolute: the new one is made in its place, the old one waits.
        old = self._target.with_name(f"{ASIDE}{self._target.name}")
        if read_marker(self._target):
            clear(old)
            self._target.rename(old)
        clear(self._target)  # a half one; an old one that an end by force left aside still waits
        try:
            await self._make(wheel)
        except BaseException:
            if old.exists():
                clear(self._target)
                old.rename(self._target)
            raise
        clear(old)

    async def _make(self, wheel: Path | None) -> None:
        if self._need.needs_python:
            await self._job.run(self._installer.venv(self._target), what=_EMPTY)
            await self._packages(wheel)
        if self._build and self._need.source:
            into = self._need.source.into
            if "{site}" in into:
                into = into.format(site=site_packages(self._target))
            self._build.take(self._target / into)
        for name, version in self._need.stands_for.items():
            add_stand_in(self._target, self._need.packages, name, version)
        await self._check()
        write_marker(self._target, self._need)

    async def _packages(self, wheel: Path | None) -> None:
        need, made = self._need, self._installer
        wanted = [_from(wheel, each) for each in need.packages]
        if not need.without:
            await self._job.run(made.install(self.python, wanted))
        elif made.uv:
            overrides = self._target / OVERRIDES
            overrides.write_text(override_lines(need))
            await self._job.run(made.install(self.python, wanted, overrides=overrides))
        else:  # pip cannot leave a dependency out: ours first, alone, then what they ask for
            await self._job.run(made.install(self.python, wanted, dependencies=False))
            rest = rest_of(self._target, need.packages, need.without)
            await self._job.run(made.install(self.python, rest))

    async def _check(self) -> None:
        engine = str(self._target / self._need.program)
        names = {"{engine}": engine, "{python}": self.python}
        for argv in self._need.check:
            await self._job.run([names.get(word, word) for word in argv], what=_CHECK)


def _from(wheel: Path | None, package: str) -> str:
    """A requirement, taken from the wheel where that is its package."""
    name = package.partition("==")[0]
    if wheel is None or wheel.name.split("-")[0] != name.partition("[")[0].replace("-", "_"):
        return package
    return f"{name} @ {wheel.as_uri()}"
