"""Server-sent events: an incremental reader and a writer. Pure."""

from __future__ import annotations

import codecs
import json

from orchestrator.errors import UpstreamInvalid

DONE = b"data: [DONE]\n\n"
_FRAME_LIMIT = 1 << 20


class SseReader:
    """Bytes in, data payloads out, however the bytes are split.

    Comments and fields other than `data` are dropped: pings are no progress. Raises UpstreamInvalid
    for bytes that are not UTF-8 and for a frame that never ends.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("strict").decode
        self._pending = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes, final: bool = False) -> list[str]:
        """The payloads that `chunk` completes."""
        try:
            self._pending += self._decode(chunk, final)
        except UnicodeDecodeError as error:
            raise UpstreamInvalid("the engine sent bytes that are not UTF-8") from error
        if len(self._pending) > _FRAME_LIMIT:
            raise UpstreamInvalid("the engine sent an event without end")
        payloads: list[str] = []
        while (line := self._take_line(final)) is not None:
            if line == "":
                if self._data:
                    payloads.append("\n".join(self._data))
                self._data = []
            elif line.startswith("data:"):
                self._data.append(line[5:].removeprefix(" "))
        return payloads

    @property
    def half_frame(self) -> bool:
        """Whether an event has begun and not ended."""
        return bool(self._data or self._pending)

    def _take_line(self, final: bool) -> str | None:
        ends = [i for i in (self._pending.find("\n"), self._pending.find("\r")) if i >= 0]
        if not ends:
            return None
        end = min(ends)
        if self._pending[end] == "\r" and end + 1 == len(self._pending) and not final:
            return None  # the \n of a \r\n may still come
        width = 2 if self._pending.startswith("\r\n", end) else 1
        line, self._pending = self._pending[:end], self._pending[end + width :]
        return line


def event(value: object) -> bytes:
    """One event that carries `value` as JSON; JSON escapes every line break."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
