"""What outlives a supervisor: records of running processes, and the log of events. SQLite, WAL.

A file that cannot be used is set aside and a new one begun: the shims hold the truth about what
runs, the database only says where to look.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine_launchers.base import EnginePlan
from orchestrator.errors import ConfigError
from orchestrator.runtimes.base import HandleRecord

SCHEMA = 1
KEPT = 10_000  # events
_TABLES = """
CREATE TABLE IF NOT EXISTS instances (
  name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, record TEXT NOT NULL, plan TEXT);
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, actor TEXT NOT NULL,
  type TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL);
"""
_log = logging.getLogger("engineroom.store")


@dataclass(frozen=True)
class Saved:
    """A process as an earlier supervisor knew it. `fingerprint` names the wish it was made from."""

    name: str
    fingerprint: str
    record: HandleRecord
    plan: EnginePlan | None


class Store:
    """One database file, opened by one supervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError as error:  # locked or full: nothing is wrong with it
            raise ConfigError(f"{self.path}: cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            aside = self.path.with_suffix(f".broken-{int(time.time())}")
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            _log.warning("state file was unusable (%s); kept as %s", error, aside)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                raise sqlite3.DatabaseError(f"schema {version}, this program knows {SCHEMA}")
            db.executescript(_TABLES)
            db.execute(f"PRAGMA user_version={SCHEMA}")
            db.execute("SELECT count(*) FROM instances, events").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def save(self, fingerprint: str, record: HandleRecord, plan: EnginePlan | None) -> None:
        """Remember a process, before it is started and again when its pids are known."""
        self._write(
            "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?)",
            record.name,
            fingerprint,
            record.model_dump_json(),
            plan.model_dump_json() if plan else None,
        )

    def forget(self, name: str) -> None:
        """Drop the record of a process that is gone."""
        self._write("DELETE FROM instances WHERE name = ?", name)

    def saved(self) -> tuple[Saved, ...]:
        """Every process that was not seen to end. A row that cannot be read is reported."""
        rows = self._db.execute("SELECT name, fingerprint, record, plan FROM instances").fetchall()
        found: list[Saved] = []
        for name, fingerprint, record, plan in rows:
            try:
                found.append(
                    Saved(
                        name=name,
                        fingerprint=fingerprint,
                        record=HandleRecord.model_validate_json(record),
                        plan=EnginePlan.model_validate_json(plan) if plan else None,
                    )
                )
            except ValidationError as error:
                _log.warning("record of %s cannot be read and is dropped: %s", name, error)
                self.forget(name)
        return tuple(found)

    def add_event(self, type: str, subject: str, actor: str = "supervisor", **detail: Any) -> None:
        """Append one event."""
        self._write(
            "INSERT INTO events (at, actor, type, subject, detail) VALUES (?, ?, ?, ?, ?)",
            time.time(),
            actor,
            type,
            subject,
            json.dumps(detail, default=str),
        )
        self._write("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", KEPT)

    def _write(self, statement: str, *values: object) -> None:
        """A full or read-only disk costs memory of the past, never the service."""
        try:
            self._db.execute(statement, values)
        except sqlite3.Error as error:
            _log.error("state could not be written: %s", error)

    def events(self, limit: int = 100, subject: str | None = None) -> list[dict[str, Any]]:
        """The latest events, newest first."""
        where, values = ("WHERE subject = ?", [subject]) if subject else ("", [])
        rows = self._db.execute(
            f"SELECT id, at, actor, type, subject, detail FROM events {where} "  # noqa: S608
            "ORDER BY id DESC LIMIT ?",
            (*values, limit),
        ).fetchall()
        keys = ("id", "at", "actor", "type", "subject")
        return [{**dict(zip(keys, row[:5], strict=True)), **{"detail": json.loads(row[5])}}
                for row in rows]  # fmt: skip
