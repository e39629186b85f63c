"""From an exit status and the last lines of a log to a cause; shared by the launchers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine_launchers.base import CrashCause, ExitResult

Rules = Sequence[tuple[CrashCause, re.Pattern[str]]]
_SIGILL = 4
_OWN = {6, 7, 8, 11}  # abort, bus error, arithmetic, bad address: nobody sends these


def diagnosed(exit: ExitResult, tail: Sequence[str], rules: Rules) -> CrashCause:
    """The first rule that matches the log of a process that ended by itself, else its status.

    A signal from outside says more than what the log may hold of earlier troubles; an abort or a
    bad address is the process's own, as after a failed allocation on a GPU. Whether an end was
    asked for is the caller's knowledge; code 0 unasked is a failure.
    """
    if exit.oom_killed:
        return CrashCause.HOST_OOM
    if exit.signal is not None and exit.signal not in _OWN:
        return CrashCause.WRONG_BUILD if exit.signal == _SIGILL else CrashCause.KILLED
    text = "\n".join(tail)
    for cause, pattern in rules:
        if pattern.search(text):
            return cause
    if exit.signal is not None:
        return CrashCause.CRASHED
    if exit.part is not None and exit.code is None:
        return CrashCause.KILLED
    if exit.code == 2:
        return CrashCause.BAD_FLAGS
    return CrashCause.EXIT_UNREQUESTED if exit.code == 0 else CrashCause.UNKNOWN
