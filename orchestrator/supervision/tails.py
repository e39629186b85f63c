"""The end of a log file."""

from __future__ import annotations

from pathlib import Path


def read_tail(
    path: Path, lines: int, since: int = 0, until: int | None = None, limit: int = 1 << 20
) -> list[str]:
    """The last `lines` lines of a log, looking at no more than its last `limit` bytes.

    `since` and `until` are byte offsets; `since` does not count if the file was rotated meanwhile.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2) if until is None else until
            start = max(0, size - limit, since if since <= size else 0)
            file.seek(start)
            text = file.read(size - start).decode(errors="replace")
    except OSError:  # nothing was written yet
        return []
    return text.splitlines()[-lines:] if lines else []
