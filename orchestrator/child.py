"""A server as a child of this interpreter: it ends when the interpreter does, however that ends.

The child holds the other end of a pipe that only we have open for writing. Closing it, or dying,
is the order to drain and to end; no code has to run here for that.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.envelopes import from_envelope
from orchestrator.errors import ConfigError, EngineRoomError, LaunchFailed
from orchestrator.settings import load_settings

_KEPT_S = 86_400.0  # the folder of a server that died is kept so long, for its logs
_log = logging.getLogger("orchestrator.adaptive")


@dataclass(frozen=True)
class Endpoints:
    """What a server tells when it is ready; `token` is that of its admin API."""

    gateway: str
    admin: str
    model: str
    token: str


def private_folder(base: Path) -> Path:
    """A fresh 0700 folder for the state of one server, in `base`; long dead ones are removed.

    Raises ConfigError where it cannot be made.
    """
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in base.iterdir():
            if _is_dead(old):
                remove_folder(old)
        return Path(tempfile.mkdtemp(dir=base))
    except OSError as error:
        raise ConfigError(f"{base}: cannot be used: {error.strerror}; set data_dir") from error


def remove_folder(folder: Path) -> None:
    """Remove a private folder, and the sockets that a killed server left elsewhere."""
    shutil.rmtree(load_settings({"data_dir": str(folder)}, {}).run, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    """Whether a folder is old and no supervisor holds its lock."""
    try:
        if time.time() - folder.stat().st_mtime < _KEPT_S:
            return False
        with (folder / "supervisor.lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # it never came so far
        return True
    except OSError:  # held, or not ours
        return False
    return True


class Child:
    """One server process, from its start to its end. Belongs to the process that made it."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Start it. Raises LaunchFailed where that is impossible."""
        self.log = log
        self._owner = os.getpid()
        try:
            with log.open("ab") as errors:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=env,
                    start_new_session=True,  # Ctrl-C is for the interpreter: it decides what ends
                )
        except OSError as error:
            raise LaunchFailed(f"{argv[0]} could not be started: {error.strerror}") from error

    @property
    def owned(self) -> bool:
        """Whether this process made it; False in a fork."""
        return os.getpid() == self._owner

    def wait_ready(self) -> Endpoints:
        """Follow its start, each step a log record. Raises what the server gave as its reason."""
        told: dict[str, Any] = {}
        for line in self._process.stdout or ():
            told = _object(line)
            if "step" in told:
                _log.info("%s", told["step"])
            elif "gateway" in told:
                _log.info("%s is ready after %s s", told["model"], told["start_seconds"])
                token = Path(told["token_file"]).read_text().strip()
                return Endpoints(told["gateway"], told["admin"], told["model"], token)
            elif "error" in told:
                raise from_envelope(told["error"])
        raise self.lost("before it was ready")

    def lost(self, when: str) -> EngineRoomError:
        """What to raise where it does not answer: the way it ended, or that it still runs."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return LaunchFailed(f"the server broke off {when} (log: {self.log})")
        said = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        last = f": {said[-1].removeprefix('engineroom: ')}" if said else ""
        return LaunchFailed(f"the server ended with code {code} {when}{last} (log: {self.log})")

    def end(self, seconds: float) -> None:
        """Let go of it and wait until it has drained and ended; KILL after `seconds`.

        In a fork of the owner this closes the fork's end of the pipe and does nothing else.
        """
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if not self.owned:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            _log.warning("the server did not end within %g s and is killed", seconds)
            self._process.kill()
            self._process.wait()


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:  # a line of somebody's own print
        return {}
    return value if isinstance(value, dict) else {}
