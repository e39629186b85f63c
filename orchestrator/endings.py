"""What reaches a server from outside: signals, a changed file, the end of whom it is tied to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import ConfigError

_SETTLED_S = 0.5
_ENDINGS = (signal.SIGTERM, signal.SIGINT)


def on_signals(call: Callable[[], object]) -> None:
    """Call at each SIGTERM and SIGINT; replaces what was called before.

    SIGHUP too where a terminal is our standard input: it tells that the terminal was closed.
    """
    endings = (*_ENDINGS, signal.SIGHUP) if _at_terminal() else _ENDINGS
    for number in endings:
        asyncio.get_running_loop().add_signal_handler(number, call)


def on_hangup(call: Callable[[], object]) -> None:
    """Call at each SIGHUP, unless that means that our terminal was closed."""
    if not _at_terminal():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, call)


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


async def on_change_of(path: Path | None, call: Callable[[], object]) -> None:
    """Call when a file was written and then left alone for a moment, until cancelled.

    Half a file is never taken: a save counts once nothing of it has changed for `_SETTLED_S`. A
    file that vanished is waited for.
    """
    if path is None:
        return
    told = seen = _stamp(path)
    while True:
        await asyncio.sleep(_SETTLED_S)
        now = _stamp(path)
        if now == seen and now not in (told, None):
            told = now
            call()
        seen = now


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:  # between an editor's two steps, or gone
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def on_parent_gone(call: Callable[[], object]) -> None:
    """Call when standard input is at its end, or the process that started this one has ended.

    The first also tells a program that lets go of us on purpose; the second sees the end of one
    whose forked children still hold the pipe. Raises ConfigError where standard input is nothing
    that can be waited for.
    """
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(0, 65_536):
            loop.remove_reader(0)
            call()

    try:
        if sys.stdin is None:
            raise PermissionError
        loop.add_reader(0, read)
    except PermissionError:
        raise ConfigError(
            "--tied: standard input must be a pipe that the starting program holds open"
        ) from None
    if sys.platform == "linux":
        # Where the parent has ended before this line, the pipe has told already.
        with suppress(OSError):  # a kernel before 5.3
            parent = os.pidfd_open(os.getppid())

            def gone() -> None:
                loop.remove_reader(parent)
                os.close(parent)
                call()

            loop.add_reader(parent, gone)
