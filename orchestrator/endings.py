"""What ends a server from outside: a signal, or the end of the program that it is tied to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from orchestrator.errors import ConfigError

_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def on_signals(call: Callable[[], object]) -> None:
    """Call at each SIGTERM, SIGINT and SIGHUP; replaces what was called before."""
    for number in _ENDINGS:
        asyncio.get_running_loop().add_signal_handler(number, call)


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
