"""Everything that one engine started, however far it ran, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from .kernel import Process, below, marked, processes, send, stat
from .leaf import Leaf

_LOOK_S = 0.002
_LOOK_MAX_S = 0.2


class Tree:
    """The engine `child` and all that came of it.

    Four ways lead to them: the control group, which nothing leaves; the session and process group
    of the engine; descent, from the engine or from a subreaper in `roots`; and a variable that only
    its environment holds, in case the subreaper is dead.
    """

    def __init__(
        self, child: Mapping[str, Any], leaf: Leaf, mark: str, roots: tuple[int, ...] = ()
    ) -> None:
        self.child, self.leaf, self.mark, self.roots = child, leaf, mark, roots

    def owns_number(self) -> bool:
        """Whether the engine's pid still stands for it, or for the group that it left behind.

        The kernel gives a number to nobody else while a group or session of that number lives.
        """
        try:
            return bool(int(stat(self.child["pid"])[19]) == self.child["started"])
        except (OSError, IndexError):
            return True

    def _members(self, seen: Mapping[int, Process]) -> set[int]:
        found = self.leaf.pids()
        roots = list(self.roots)
        if self.owns_number():
            leader = self.child["pid"]
            roots.append(leader)
            found |= {pid for pid, each in seen.items() if each.session == leader} | {leader}
        for root in roots:
            found |= below(seen, root)
        return found

    def members(self) -> dict[int, int]:
        """Live pids and their start times."""
        return self._look(lambda seen: self._members(seen))

    def remains(self) -> dict[int, int]:
        """The same, by every way there is; dearer, since every environment is read."""
        return self._look(lambda seen: self._members(seen) | marked(seen, self.mark))

    def _look(self, find: Callable[[Mapping[int, Process]], set[int]]) -> dict[int, int]:
        seen = processes()
        return {pid: seen[pid].started for pid in find(seen) & set(seen) - {os.getpid()}}

    def signal_group(self, number: int) -> None:
        """Signal the engine's process group, if it is still its own."""
        if self.owns_number():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child["pid"], number)

    def kill(self, limit_s: float = float("inf")) -> dict[int, int]:
        """KILL until nothing lives, or `limit_s` is over; what is left then."""
        ends, pause = time.monotonic() + limit_s, _LOOK_S
        while True:
            self.leaf.kill()
            self.signal_group(signal.SIGKILL)
            left = self.remains()
            if not left or time.monotonic() > ends:
                return left
            for pid, started in left.items():
                send(pid, started, signal.SIGKILL)
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_MAX_S)
