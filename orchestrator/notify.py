"""What a service manager is told of this process: that it is ready, that it ends, that it lives.

The protocol is systemd's: datagrams of `KEY=value` lines to the socket that NOTIFY_SOCKET names.
Podman and s6 speak it too. Where nobody listens, nothing is sent. The event loop never waits for a
manager: a sign of life that its queue has no room for is dropped, what else is said waits in a
thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Mapping

_log = logging.getLogger("engineroom")
_PATIENCE_S = 5.0  # a manager whose queue is full for so long is not waited for


class Manager:
    """The service manager that started this process, or nobody."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._path = env.get("NOTIFY_SOCKET", "")
        self._beat_s = _half_of_the_limit(env) if self._path else None
        self._told_of_failure = False
        self._waiting: threading.Thread | None = None  # the last that waits for room

    def ready(self, status: str) -> None:
        """It serves; `status` is what the manager shows of it."""
        self._tell_for_sure(_message(READY="1", STATUS=status))

    def stopping(self, status: str) -> None:
        """It has begun to end."""
        self._tell_for_sure(_message(STOPPING="1", STATUS=status))

    def _tell_for_sure(self, message: bytes) -> None:
        """Send it, in a thread where there is no room now; after what waits there already."""
        before = self._waiting
        waits = before is not None and before.is_alive()
        if not waits and self._tell(message, 0):
            return

        def wait() -> None:
            if before is not None:
                before.join()
            if not self._tell(message, _PATIENCE_S):
                self._failed(f"its queue is full for {_PATIENCE_S:g} s")

        self._waiting = threading.Thread(target=wait, name="service manager")
        self._waiting.start()

    def _tell(self, message: bytes, patience_s: float) -> bool:
        """Send one message; False where there is no room for it within `patience_s`."""
        if not self._path:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(patience_s)
                sender.connect(_address(self._path))
                sender.sendall(message)
        except (BlockingIOError, TimeoutError):
            return False
        except OSError as error:
            self._failed(str(error))
        return True

    def _failed(self, why: str) -> None:
        """A manager that cannot be reached is an entry in the log, once."""
        if not self._told_of_failure:
            _log.error("NOTIFY_SOCKET %s: the service manager is not told: %s", self._path, why)
        self._told_of_failure = True

    async def keep_alive(self) -> None:
        """Tell as often as the manager wants it that the event loop turns, until cancelled."""
        while self._beat_s is not None:
            self._tell(_message(WATCHDOG="1"), 0)
            await asyncio.sleep(self._beat_s)


def _message(**said: str) -> bytes:
    """A line per fact."""
    return "\n".join(f"{key}={' '.join(value.split())}" for key, value in said.items()).encode()


def _address(path: str) -> str:
    """A leading @ stands for the byte 0 of Linux's abstract names."""
    if path[0] not in "/@":
        raise OSError("neither an absolute path nor an abstract name")
    return f"\0{path[1:]}" if path[0] == "@" else path


def _half_of_the_limit(env: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life; None where none are wanted of this process."""
    limit, meant = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not limit.isdigit() or int(limit) == 0 or meant not in ("", str(os.getpid())):
        return None
    return int(limit) / 2_000_000
