"""Runs installers and compilers: their lines are told and logged, and none outlives its caller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

Progress = Callable[[str, float], None]
"""Called with the latest line of output and the seconds since the installation began."""

# Ours are not for strangers' build scripts; the others would lead an installer out of the
# environment that it is to fill, or keep it from compiling what it installs.
_HIDDEN = {
    *("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "UV_SYSTEM_PYTHON", "UV_PROJECT_ENVIRONMENT"),
}
_STEP_S = 1.0


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of our own environment an installer gets."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("ENGINEROOM_") and name not in _HIDDEN
    }


class CommandFailed(Exception):
    """A command ended with another code than 0; the text is the line that says why."""


class Job:
    """The commands of one installation: one log file, one clock, one listener.

    `held` is the descriptor of the installation's lock: the children inherit it, so that it stays
    locked while any of them writes, even if this process is killed.
    """

    def __init__(
        self, log: Path, environment: Mapping[str, str], progress: Progress, held: int | None = None
    ) -> None:
        self.log, self.environment, self._progress = log, dict(environment), progress
        self._held = [] if held is None else [held]
        self._began = time.monotonic()
        log.unlink(missing_ok=True)

    @contextlib.contextmanager
    def holding(self, lock: int) -> Iterator[None]:
        """Let the children inherit a further lock."""
        self._held.append(lock)
        try:
            yield
        finally:
            self._held.remove(lock)

    def tell(self, line: str) -> None:
        """Pass one line on to the listener."""
        self._progress(line, time.monotonic() - self._began)

    async def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        what: str = "",
    ) -> list[str]:
        """Run to the end and return its lines. Raises CommandFailed; cancelling kills its tree.

        `what` is told while there is no line yet.
        """
        starting = asyncio.create_task(self._start(argv, {**self.environment, **(env or {})}))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:  # it may run already, with children of its own
            await _end(await starting)
            raise
        lines: list[str] = []
        reader = asyncio.create_task(self._read(process, lines, argv))
        try:
            while not reader.done():
                await asyncio.wait({reader}, timeout=_STEP_S)
                self.tell(lines[-1] if lines else what or Path(argv[0]).name)
            reader.result()
            code = await process.wait()
        finally:
            await _end(process)
            reader.cancel()
        if code != 0:
            raise CommandFailed(_reason(lines, code))
        return lines

    async def _start(
        self, argv: Sequence[str], env: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=env,
            limit=1 << 20,
            start_new_session=True,
            pass_fds=tuple(self._held),
        )

    async def _read(
        self, process: asyncio.subprocess.Process, lines: list[str], argv: Sequence[str]
    ) -> None:
        if process.stdout is None:
            return
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(argv)}\n")
            async for raw in process.stdout:
                if text := raw.decode(errors="replace").strip():
                    lines.append(text)
                    log.write(text + "\n")
                    log.flush()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what has not ended: compilers and all.

    By session, which is the command's own: Ninja gives each compiler a process group.
    """
    if process.returncode is None:
        killed: set[int] = set()
        while alive := _session(process.pid) - killed:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= alive
        await process.wait()


def _session(leader: int) -> set[int]:
    """The processes of a session."""
    found = set()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it has ended, or is not ours to ask
            if os.getsid(pid) == leader:
                found.add(pid)
    return found


def _reason(lines: Sequence[str], code: int) -> str:
    errors = [line for line in lines if "error" in line.lower()]
    last = (errors or lines or ["no output"])[-1]
    return last if code > 0 else f"{last} (ended by {signal.Signals(-code).name})"
