"""The descendants that an engine cannot live without."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from .kernel import ending, stat

_LOOK_S = 1.0
_LOOK_MAX_S = 16.0  # between two looks for vital descendants, once one of each kind is there


class Vital:
    """Each of them held by a pidfd. `words` are what their command lines begin with."""

    def __init__(self, words: list[str]) -> None:
        self.words = tuple(words)
        self.held: dict[int, tuple[int, int, str]] = {}  # pidfd -> pid, start time, title
        self.look_at, self.pause = 0.0, _LOOK_S

    def found(self, leader: int, members: Callable[[], Mapping[int, int]]) -> list[int]:
        """Pidfds of those that were not known; looks less often once each kind is there."""
        if not self.words or time.monotonic() < self.look_at:
            return []
        fresh, known = [], {who[:2] for who in self.held.values()}
        for pid, started in members().items():
            if pid == leader or (pid, started) in known:
                continue
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read(256).split(b"\0", 1)[0].decode(errors="replace")
                if not title.startswith(self.words):
                    continue
                pidfd = os.pidfd_open(pid)
                if int(stat(pid)[19]) != started:  # its pid was used again while we looked
                    os.close(pidfd)
                    continue
                self.held[pidfd] = (pid, started, title)
                fresh.append(pidfd)
        seen = [title for _, _, title in self.held.values()]
        whole = all(any(title.startswith(word) for title in seen) for word in self.words)
        self.pause = _LOOK_S if fresh or not whole else min(2 * self.pause, _LOOK_MAX_S)
        self.look_at = time.monotonic() + self.pause
        return fresh

    def ended(self, pidfd: int) -> dict[str, Any]:
        """Let go of one that ended: its name, and its status while its parent has not taken it."""
        pid, started, title = self.held.pop(pidfd)
        os.close(pidfd)
        return {**ending(pid, started), "part": f"{title} ({pid})"}
