"""Lines of an engine's log as they may be shown: none too long, and none that does something."""

from __future__ import annotations

import re

CAP = 16_384  # bytes of one line that are shown
_ENDS = re.compile(rb"\r\n|\n|\r")
_ENDS_BUT_LAST = re.compile(rb"\r\n|\n|\r(?!\Z)")  # the "\n" of "\r\n" may be still to come
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with control characters, tabs apart, written out: ESC becomes the four of `\\x1b`.

    So are those that reverse or break what a terminal or a page shows of the rest.
    """
    return _CONTROL.sub(lambda found: _written_out(ord(found[0])), text)


def _written_out(number: int) -> str:
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def shown(line: bytes, dropped: int = 0) -> str:
    """One line, without its end, as it may be shown; `dropped` bytes of it are missing already."""
    dropped += max(0, len(line) - CAP)
    text = harmless(line[:CAP].decode(errors="replace"))
    return f"{text} … {dropped} bytes more" if dropped else text


def split(data: bytes) -> list[str]:
    """Every line of some output as it may be shown. A carriage return ends one too."""
    lines = _ENDS.split(data)
    if not lines[-1]:
        lines.pop()
    return [shown(line) for line in lines]


class Lines:
    """Output that comes in pieces, as lines; it never holds more than one line's worth."""

    def __init__(self) -> None:
        self._pending, self._dropped = b"", 0

    def feed(self, data: bytes) -> list[str]:
        """The lines that this piece completes."""
        *whole, pending = _ENDS_BUT_LAST.split(self._pending + data)
        found = []
        for line in whole:
            found.append(shown(line, self._dropped))
            self._dropped = 0
        keep = CAP + 1 if pending.endswith(b"\r") else CAP
        if len(pending) > keep:
            self._dropped += len(pending) - keep
            pending = pending[: keep - 1] + pending[-1:] if keep > CAP else pending[:keep]
        self._pending = pending
        return found
