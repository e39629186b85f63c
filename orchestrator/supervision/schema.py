"""The tables of the state file, and the steps from each version of them to the next.

`user_version` of the file is the number of steps that it has been taken through. A step never
changes once a version with it was released: a file of any age goes through those it lacks.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable

_FIRST = (
    """CREATE TABLE IF NOT EXISTS instances (
  name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, record TEXT NOT NULL, plan TEXT)""",
    """CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, actor TEXT NOT NULL,
  type TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL)""",
)
# `seal` is that of the other columns together; a plan has the id of the event that tells of it.
_SECOND = (
    "ALTER TABLE instances ADD COLUMN seal TEXT NOT NULL DEFAULT ''",
    """CREATE TABLE plans (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, subject TEXT NOT NULL, generation INTEGER NOT NULL,
  why TEXT NOT NULL, plan TEXT NOT NULL)""",
    """CREATE TABLE calibration (
  key TEXT PRIMARY KEY, at REAL NOT NULL, experience TEXT NOT NULL, seal TEXT NOT NULL)""",
)
_THIRD = (
    """CREATE TABLE standing (
  model TEXT PRIMARY KEY, standing TEXT NOT NULL, seal TEXT NOT NULL)""",
)
TABLES = {
    "instances": ("name", "fingerprint", "record", "plan", "seal"),
    "events": ("id", "at", "actor", "type", "subject", "detail"),
    "plans": ("id", "at", "subject", "generation", "why", "plan"),
    "calibration": ("key", "at", "experience", "seal"),
    "standing": ("model", "standing", "seal"),
}


def insert(table: str) -> str:
    """The statement that writes one row, whatever stood under its key."""
    columns = TABLES[table]
    marks = ", ".join("?" * len(columns))
    return f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608


def select(table: str, rest: str = "") -> str:
    """The statement that reads the columns in the order of `TABLES`."""
    return f"SELECT {', '.join(TABLES[table])} FROM {table} {rest}"  # noqa: S608


def chosen(
    limit: int, subject: str | None, type: str | None, after: int = 0, newest: bool = True
) -> tuple[str, tuple[object, ...]]:
    """The statement that reads events, of a subject, of a type or its family, and its values."""
    where = "id > ? AND (? IS NULL OR subject = ?)"
    where += " AND (? IS NULL OR type = ? OR type LIKE ? || '.%')"
    statement = select("events", f"WHERE {where} ORDER BY id {'DESC' if newest else 'ASC'} LIMIT ?")
    return statement, (after, subject, subject, type, type, type, limit)


def older(table: str) -> str:
    """The statement that leaves as many of the latest rows as its value, and one."""
    last = f"SELECT id FROM {table} ORDER BY id DESC LIMIT 1 OFFSET ?"  # noqa: S608
    return f"DELETE FROM {table} WHERE id < ({last})"  # noqa: S608


def seal(*columns: object) -> str:
    """A checksum over the columns of a row: SQLite has none, and a flipped digit is valid JSON."""
    return hashlib.sha256(repr(columns).encode()).hexdigest()


def _one(db: sqlite3.Connection) -> None:
    for statement in _FIRST:
        db.execute(statement)


def _two(db: sqlite3.Connection) -> None:
    for statement in _SECOND:
        db.execute(statement)
    rows = db.execute("SELECT name, fingerprint, record, plan FROM instances").fetchall()
    for row in rows:
        db.execute("UPDATE instances SET seal = ? WHERE name = ?", (seal(*row), row[0]))


def _three(db: sqlite3.Connection) -> None:
    for statement in _THIRD:
        db.execute(statement)


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_one, _two, _three)
SCHEMA = len(STEPS)


def migrate(db: sqlite3.Connection) -> None:
    """Take a file through the steps that it lacks, each whole or not at all.

    Raises sqlite3.DatabaseError for a file of a newer program, which is left as it is.
    """
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= found <= SCHEMA:
        raise sqlite3.DatabaseError(
            f"its schema is {found}, this program knows up to {SCHEMA}: a newer one made it"
        )
    for number in range(found, SCHEMA):
        db.execute("BEGIN IMMEDIATE")
        try:
            STEPS[number](db)
            db.execute(f"PRAGMA user_version={number + 1}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def verify(db: sqlite3.Connection) -> None:
    """Look at every page, and that the columns are there. Raises sqlite3.DatabaseError."""
    db.execute("PRAGMA shrink_memory")  # what is cached would hide what is on the disk
    if (told := db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
        raise sqlite3.DatabaseError(f"it is damaged: {told[0] if told else 'nothing was read'}")
    for table in TABLES:
        db.execute(select(table, "LIMIT 1")).fetchone()
