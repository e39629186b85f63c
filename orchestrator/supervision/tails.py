"""The end of a log file."""

from __future__ import annotations

from pathlib import Path

from orchestrator.supervision.lines import split


def read_tail(
    path: Path, lines: int, since: int = 0, until: int | None = None, limit: int = 1 << 20
) -> list[str]:
    """The last `lines` lines of a log, looking at no more than its last `limit` bytes.

    Long lines are cut and control characters written out. `since` and `until` are byte offsets;
    `since` does not count if the file was rotated meanwhile.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2) if until is None else until
            start = max(0, size - limit, since if since <= size else 0)
            file.seek(start)
            data = file.read(size - start)
    except OSError:  # nothing was written yet
        return []
    return split(data)[-lines:] if lines else []
