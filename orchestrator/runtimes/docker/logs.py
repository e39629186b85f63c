"""From a container's output to the engine's log file, by a thread that follows it.

The Docker Engine keeps what comes while nobody follows: the next supervisor goes on where this one
was. `logged` in the launch's folder holds the time of the last line that was written, and how many
parts with that time were: those of a line over 16 KB have the same.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.docker.connection import Connection, Refused
from orchestrator.runtimes.docker.streams import Stream
from orchestrator.runtimes.shim.output import Output

_log = logging.getLogger("engineroom.docker")
_AGAIN_S = 0.5
_NOTE_S = 1.0
_LAST_S = 3.0  # for the last lines of a container that has ended
_TICK_S = 1.0


class Mark:
    """How far a log was written: the latest time in it, and the parts that had that time. Pure."""

    def __init__(self, text: str = "") -> None:
        self.last, _, parts = text.partition(" ")
        self._parts = int(parts) if parts.isdigit() else int(bool(self.last))
        self.resume()

    def __str__(self) -> str:
        return f"{self.last} {self._parts}"

    def resume(self) -> None:
        """From here on comes what may have been written before: times are asked for roughly."""
        self._from, self._again = self.last, self._parts

    def is_new(self, when: str) -> bool:
        """Whether the part that comes next, of time `when`, is to be written; it counts then.

        Only what was written before the stream began is left out: a line of one output may well
        come after a later one of the other.
        """
        if when < self._from:
            return False
        if when == self._from and self._again > 0:
            self._again -= 1
            return False
        if when >= self.last:
            self._parts = self._parts + 1 if when == self.last else 1
            self.last = when
        return True


class Follower:
    """Follows one container until it has ended, or `close`."""

    def __init__(self, connection: Connection, id: str, log: Output, folder: Path) -> None:
        self._connection, self._id, self._output = connection, id, log
        self._file = folder / "logged"
        self._mark = Mark(_read(self._file))
        self._noted = 0.0
        self._stream = Stream()
        self._thread = threading.Thread(target=self._run, name=f"log {id[:12]}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread still has the log file open."""
        return self._thread.is_alive()

    def finish(self) -> None:
        """Return when the last lines of a container that has ended are written; blocks."""
        self._thread.join(_LAST_S)
        self.close()
        self.join()

    def close(self) -> None:
        """Follow no more."""
        self._stream.end()

    def join(self) -> None:
        """Return when nothing is written any more, after `close`; blocks for a moment."""
        self._thread.join(_LAST_S)

    def _run(self) -> None:
        try:
            while not self._stream.ended and self._followed():
                self._stream.pause(_AGAIN_S)
        finally:
            self._note()
            os.close(self._output.fd)

    def _followed(self) -> bool:
        try:
            return self._follow()
        except Exception:  # noqa: BLE001 - whatever it is, the rest of the output is wanted
            if not self._stream.ended:
                _log.exception("the output of container %s could not be read", self._id[:12])
            return True

    def _follow(self) -> bool:
        """Write what comes; whether there may be more after the stream ended."""
        try:
            with self._connection.asking() as client:
                asked: dict[str, Any] = {"stream": True, "follow": True, "timestamps": True}
                if since := _seconds(self._mark.last):
                    asked["since"] = since
                self._mark.resume()
                for frame in self._stream.through(client.logs(self._id, **asked)):
                    self._write(frame)
                    if self._stream.ended:
                        return False
                return bool(client.inspect_container(self._id)["State"]["Running"])
        except Refused as error:
            if not error.missing:
                _log.warning("the output of container %s: %s", self._id[:12], error)
            return not error.missing
        except LaunchFailed:  # away: the watcher tells of it
            return True

    def _write(self, frame: bytes) -> None:
        at, _, line = frame.partition(b" ")
        if not self._mark.is_new(at.decode(errors="replace")):
            return
        try:
            os.write(self._output.fd, line)
            self._output.keep_small(_TICK_S)
        except OSError as error:  # a full disk: what cannot be kept is dropped
            _log.debug("%s: %s", self._output.path, error)
        if time.monotonic() - self._noted > _NOTE_S:
            self._note()

    def _note(self) -> None:
        self._noted = time.monotonic()
        with suppress(OSError):  # it would be written twice, which is better than not at all
            self._file.write_text(str(self._mark))


def _read(mark: Path) -> str:
    try:
        return mark.read_text()
    except OSError:  # nothing was written yet
        return ""


def _seconds(at: str) -> float | None:
    """A time as the API takes it, a little before the one that is meant; None for none."""
    try:
        return max(1.0, datetime.fromisoformat(at).timestamp() - 0.001)
    except ValueError:
        return None
