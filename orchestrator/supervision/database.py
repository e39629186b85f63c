"""The state file on the disk: opened, migrated, checked, kept aside when bad, copied while good.

Beside `state.db` lies `state.good.db`, the last copy that was found whole: what a new file begins
with when the old one is lost. A file that cannot be read is never deleted, but renamed to
`state.broken-TIME`; the last few of those are kept.

The file is locked for this process alone (SQLite's exclusive mode): its index then lies in our own
memory, so that a file which is truncated under us is an error to be handled and not a SIGBUS.
Others read the copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from orchestrator.supervision.schema import migrate, select, verify

ASIDE = 3  # bad files that are kept
_BUSY_S = 0.5
# What is wrong is the disk, or somebody else's lock: the file may be good, and is left alone.
_DISK = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
Row = tuple[object, ...]
Rows = Mapping[str, list[Row]]
Write = tuple[str, Sequence[object]]


def copy_of(path: Path) -> Path:
    """Where the good copy of a state file lies."""
    return path.with_name(f"{path.stem}.good{path.suffix}")


def damaged(error: sqlite3.Error) -> bool:
    """Whether an error tells of the file's content rather than of the disk below it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF not in _DISK


@contextmanager
def _as_sqlite() -> Iterator[None]:
    """A broken file may make SQLite say things that are no text, or ask for all memory."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError("it is so damaged that the error is no text") from error
    except MemoryError as error:
        raise sqlite3.DatabaseError("reading it takes more memory than there is") from error


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


class Database:
    """One file, opened by one process. Every method but `close` may raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.good = copy_of(path)
        self._db: sqlite3.Connection | None = None
        self._was = (0, 0, 0)

    def open(self) -> str:
        """Open the file, mended where need be: what was wrong with it, empty where nothing was.

        Raises sqlite3.Error or OSError where the disk does not let us; the file stays as it is.
        """
        wrong = self._lost()
        if not wrong:
            try:
                self._connect()
                return ""
            except sqlite3.Error as error:
                if not damaged(error):
                    raise
                wrong = str(error)
        self.replace()
        return wrong

    def replace(self) -> None:
        """Put the file aside and begin anew with the last good copy, or with nothing."""
        self.close()
        self._put_aside(self.path)
        if self.good.exists():
            shutil.copyfile(self.good, self.path)
            try:
                self._connect()
                return
            except sqlite3.Error as error:
                if not damaged(error):
                    raise
            self._put_aside(self.good)
            self._put_aside(self.path)
        self._connect()

    def run(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """Run one statement; its rows."""
        with _as_sqlite():
            return self._open_db().execute(statement, values).fetchall()

    def run_all(self, statements: Iterable[Write]) -> None:
        """Run statements that write, all of them or none."""
        db = self._open_db()
        db.execute("BEGIN IMMEDIATE")
        try:
            with _as_sqlite():
                for statement, values in statements:
                    db.execute(statement, values)
                db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # a full disk has rolled it back already
                db.execute("ROLLBACK")
            raise

    def gone(self) -> str:
        """Why the file at our path is no more the one that we opened; empty while it is."""
        try:
            now = os.stat(self.path)
        except OSError as error:
            return f"it cannot be found: {error.strerror}"
        device, inode, least = self._was
        if (now.st_dev, now.st_ino) != (device, inode):
            return "another file stands in its place"
        return "it was cut" if now.st_size < least else ""

    def copy(self) -> None:
        """Look at every page, and renew the good copy. Raises sqlite3.Error or OSError."""
        db = self._open_db()
        with _as_sqlite():
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            verify(db)
        fresh = self.good.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        try:
            with _as_sqlite():
                db.execute("VACUUM INTO ?", (str(fresh),))
            fresh.replace(self.good)
        except BaseException:  # half a copy on a full disk is in the way
            fresh.unlink(missing_ok=True)
            raise

    def read_copy(self, statement: str) -> list[Row]:
        """Rows of the good copy; works on a disk that cannot be written."""
        return read_only(self.good, statement)

    def close(self) -> None:
        """Close the file, whatever the disk says to that."""
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            error = sqlite3.OperationalError("the state file is not open")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return self._db

    def _lost(self) -> str:
        if not self.good.exists():
            return ""
        try:
            return "" if self.path.stat().st_size else "it was empty"
        except FileNotFoundError:
            return "it was gone"

    def _connect(self) -> None:
        db = sqlite3.connect(
            self.path, isolation_level=None, timeout=_BUSY_S, check_same_thread=False
        )
        try:
            db.text_factory = _text
            with _as_sqlite():
                db.execute("PRAGMA locking_mode=EXCLUSIVE")
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                migrate(db)
                verify(db)
            found = os.stat(self.path)
        except BaseException:
            db.close()
            raise
        self._db = db
        self._was = (found.st_dev, found.st_ino, found.st_size)

    def _put_aside(self, path: Path) -> None:
        """Rename a bad file, with its log of writes; an empty one is not worth keeping."""
        log = path.with_name(path.name + "-wal")
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
        if not path.exists() or not path.stat().st_size:
            path.unlink(missing_ok=True)
            log.unlink(missing_ok=True)
            return
        aside = path.with_name(f"{self.path.stem}.broken-{time.time_ns() // 1000}")
        path.replace(aside)
        if log.exists():
            log.replace(aside.with_name(aside.name + "-wal"))
        for old in self.aside()[:-ASIDE]:
            old.unlink()
            old.with_name(old.name + "-wal").unlink(missing_ok=True)

    def aside(self) -> list[Path]:
        """The bad files that are kept, oldest first."""
        return sorted(self.path.parent.glob(f"{self.path.stem}.broken-*[0-9]"))


def read_only(path: Path, statement: str, values: Sequence[object] = ()) -> list[Row]:
    """Rows of a file that nobody writes to. Raises sqlite3.Error; a missing file has no rows."""
    return _read(path, "mode=ro&immutable=1", statement, values) if path.exists() else []


def read_left(path: Path, statement: str, values: Sequence[object] = ()) -> list[Row]:
    """Rows of a state file whose supervisor is gone, with its last writes; else of its good copy.

    Raises sqlite3.Error where neither can be read.
    """
    try:
        return _read(path, "mode=ro", statement, values)
    except sqlite3.Error:
        return read_only(copy_of(path), statement, values)


def _read(path: Path, how: str, statement: str, values: Sequence[object]) -> list[Row]:
    address = f"{path.absolute().as_uri()}?{how}"
    with _as_sqlite(), closing(sqlite3.connect(address, uri=True, timeout=_BUSY_S)) as db:
        db.text_factory = _text
        return db.execute(statement, values).fetchall()


def rows_of(read: Callable[[str], list[Row]], events: int) -> Rows:
    """What a supervisor begins with, by table: all but the older `events` and the plans."""
    latest = f"ORDER BY id DESC LIMIT {events}"
    rest = {"instances": "", "calibration": "", "standing": "", "events": latest}
    return {table: read(select(table, which)) for table, which in rest.items()}
