"""Server-sent events: an incremental reader and a writer. Pure."""

from __future__ import annotations

import json

DONE = b"data: [DONE]\n\n"
FRAME_LIMIT = 1 << 20  # bytes of one event
CR, LF = b"\r\n"
"""Numbers: bytes are searched for one ten times faster than for bytes."""


class SseReader:
    """Bytes in, data payloads out, however the bytes are split and whatever ends their lines.

    Comments and fields other than `data` are dropped: pings are no progress. The bytes of a payload
    are as they came; whether they are UTF-8 is for the parser of the payload to say.
    """

    __slots__ = ("_after_cr", "_pending", "idle")

    def __init__(self) -> None:
        self._pending = b""
        self._after_cr = False
        self.idle = True
        """Whether what comes next begins a line of a new event."""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes."""
        if CR in data or self._after_cr:
            data = self._plain(data)
        if self._pending:
            data = self._pending + data
        *blocks, self._pending = data.split(b"\n\n")
        payloads: list[bytes] = []
        for block in blocks:
            if block.startswith(b"data: ") and LF not in block:
                payloads.append(block[6:])
            else:
                payloads += _payload(block)
        self.idle = not (self._pending or self._after_cr)
        return payloads

    @property
    def endless(self) -> bool:
        """Whether an event has begun that is longer than any may be."""
        return len(self._pending) > FRAME_LIMIT

    @property
    def half_frame(self) -> bool:
        """Whether an event has begun and not ended."""
        *lines, last = self._pending.split(b"\n")
        return bool(last) or any(line.startswith(b"data:") for line in lines)

    def _plain(self, data: bytes) -> bytes:
        """The same with every line ended by one line feed; a CR and its LF may come apart."""
        if self._after_cr and data:
            data, self._after_cr = data.removeprefix(b"\n"), False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _payload(block: bytes) -> list[bytes]:
    """The payload of the lines before an empty one: one, or none where no line has data."""
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line[:5] == b"data:"]
    return [b"\n".join(lines)] if lines else []


def event(value: object) -> bytes:
    """One event that carries `value` as JSON; JSON escapes every line break."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def comment(text: str) -> bytes:
    """What every reader of events skips; `text` is one line."""
    return b": " + text.encode() + b"\n\n"
