"""Makes one environment: an empty one, the packages, what they stand for, the check, the marker."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrator.engines.choosing import Requirement
from orchestrator.engines.marker import write_marker
from orchestrator.engines.recipe import Installer
from orchestrator.engines.running import Job


class Installation:
    """One run of an installation into `target`, with `cache` for what later ones can use."""

    def __init__(
        self, need: Requirement, target: Path, cache: Path, installer: Installer, job: Job
    ) -> None:
        self._need, self._target, self._cache = need, target, cache
        self._installer, self._job = installer, job

    @property
    def python(self) -> str:
        """The environment's interpreter."""
        return str(self._target / "bin" / "python")

    async def run(self) -> None:
        """From whatever is there to a whole environment. Raises CommandFailed or OSError."""
        clear(self._target)
        need, made = self._need, self._installer
        await self._job.run(made.venv(self._target))
        fresh = need.needs_compiler
        cmake = " ".join(f"-D{key}={value}" for key, value in need.define.items())
        build_env = {**need.build_env, **({"CMAKE_ARGS": cmake} if cmake else {})}
        await self._job.run(made.install(self.python, need.packages, fresh=fresh), build_env)
        await self._check()
        write_marker(self._target, need)

    async def _check(self) -> None:
        engine = str(self._target / self._need.program)
        names = {"{engine}": engine, "{python}": self.python}
        for argv in self._need.check:
            await self._job.run([names.get(word, word) for word in argv])


def clear(folder: Path) -> None:
    """Remove a half environment, or the link that stands in its place."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
