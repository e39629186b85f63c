"""Logging: one line an event, `key=value` pairs after the message, control characters escaped."""

from __future__ import annotations

import logging
import sys

_LINE = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


class _OneLine(logging.Formatter):
    """Keeps a record on one line, whatever an engine or a client put into it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if c.isprintable() or (c == "\n" and record.exc_info) else _escape(c)
                       for c in text)[:16_384]  # fmt: skip


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def configure(level: str) -> None:
    """Log to standard error at `level` (debug, info, warning, error)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(_LINE, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def pairs(**fields: object) -> str:
    """`key=value` pairs; values with spaces are quoted."""
    shown = ((key, str(value)) for key, value in fields.items())
    return " ".join(
        f"{key}={value!r}" if " " in value else f"{key}={value}" for key, value in shown
    )
