"""How an installation shows itself: a line rewritten in place, or one every ten seconds."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from orchestrator.cli.show import duration, print_plain

_QUIET_STEP_S = 10.0


class InstallationLine:
    """Told each line of an installer; `steps` gets what a program that listens shall be told."""

    def __init__(
        self, notes: Console, what: str, steps: Callable[[str, float], None] | None = None
    ) -> None:
        self._notes, self._what, self._steps = notes, what, steps
        self._said_at = -_QUIET_STEP_S
        self._in_place = False

    def __call__(self, line: str, seconds: float) -> None:
        """The installer's latest line, and how long it has been going."""
        text = f"installing {self._what}, {duration(seconds)}: {' '.join(line.split())}"
        if self._notes.is_terminal:
            width = max(20, self._notes.width - 1)
            self._notes.file.write("\r\x1b[K" + text[:width])
            self._notes.file.flush()
            self._in_place = True
        elif seconds - self._said_at >= _QUIET_STEP_S:
            self._said_at = seconds
            print_plain(self._notes, text[:200])
            if self._steps:
                self._steps(text[:200], seconds)

    def end(self) -> None:
        """Leave the line that was rewritten."""
        if self._in_place:
            self._notes.file.write("\n")
            self._in_place = False
