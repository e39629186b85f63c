"""Server-sent events: bytes in, data payloads out, however the bytes are split. Pure, and lean.

Lines end with LF or CRLF (a lone CR, which the standard allows, no server of this kind sends).
"""

from __future__ import annotations

_LIMIT = 1 << 22


class TooLong(ValueError):
    """An event that does not end."""


class SseReader:
    """An incremental reader; comments and other fields than `data` are dropped."""

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that `chunk` completes. Raises TooLong over 4 MiB without an end."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LIMIT:
            raise TooLong("an event without end")
        payloads = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    payloads.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        return payloads
