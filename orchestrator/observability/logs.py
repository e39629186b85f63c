"""Logging: one line an event, for people or as JSON.

Text: `key=value` pairs after the message, control characters escaped. JSON: one object with `at`
(UTC), `level`, `logger`, `message`, the pairs as keys of their own, and `error` for a traceback.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

_LINE = "%(asctime)s %(levelname)-7s %(name)s %(message)s"
_MOST = 16_384
Form = Literal["text", "json"]


class _OneLine(logging.Formatter):
    """Keeps a record on one line, whatever an engine or a client put into it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        told = _told(record)
        return super().formatMessage(record) + (f" {pairs(**told)}" if told else "")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if c.isprintable() or (c == "\n" and record.exc_info) else _escape(c)
                       for c in text)[:_MOST]  # fmt: skip


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "at": at, "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage()[:_MOST],
        }  # fmt: skip
        line |= _told(record)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)[:_MOST]
        return json.dumps(line, default=str)


def _told(record: logging.LogRecord) -> dict[str, Any]:
    found = getattr(record, "told", None)
    return found if isinstance(found, dict) else {}


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def configure(level: str, form: Form = "text") -> None:
    """Log to standard error at `level` (debug, info, warning, error)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _OneLine(_LINE, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "uvicorn", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def told(**fields: object) -> dict[str, dict[str, object]]:
    """`extra` of a record: its pairs, without those that are None."""
    return {"told": {key: value for key, value in fields.items() if value is not None}}


def pairs(**fields: object) -> str:
    """`key=value` pairs; values with spaces are quoted."""
    shown = ((key, str(value)) for key, value in fields.items())
    return " ".join(
        f"{key}={value!r}" if " " in value else f"{key}={value}" for key, value in shown
    )
