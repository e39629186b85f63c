"""What outlives a supervisor: processes, orders, plans, events, what was learned. SQLite, WAL.

Memory has it all (events: the latest), the file is written through. So nothing here raises, and
nothing stops with the disk: a file that is damaged is put aside and a new one written from memory;
while the disk is full or read-only, memory goes on alone and `tend` tries again. At the start, what
a lost file held comes from its last good copy, and the processes from their own folders.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine_launchers.base import EnginePlan
from orchestrator.planning.experience import Experience
from orchestrator.runtimes.base import HandleRecord
from orchestrator.supervision import calibration, journal, records
from orchestrator.supervision.database import Database, Rows, Write, damaged, rows_of
from orchestrator.supervision.journal import Event, Journal
from orchestrator.supervision.records import Saved
from orchestrator.supervision.schema import TABLES, chosen, insert, older, select
from orchestrator.supervision.standing import StandingOrders

__all__ = ["Saved", "Store"]

KEPT = 10_000  # events in the file
KEPT_PLANS = 1_000
COPY_EVERY_S = 600.0
TEND_S = 5.0
_TRIM_EVERY = 500  # events
_RECENT_PLANS = 100
_log = logging.getLogger("engineroom.store")


class Store:
    """One state file, of one supervisor. `instances` is the folder of the processes' folders.

    `degraded` says why the file cannot be used now, empty while it can.
    """

    def __init__(
        self,
        path: Path,
        instances: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.degraded = ""
        self.journal = Journal()
        self._instances = instances or path.parent / "instances"
        self._clock = clock
        self._file = Database(path)
        self._saved: dict[str, Saved] = {}
        self._learned: dict[str, Experience] = {}
        self.standing = StandingOrders(self._write, self._renew_copy)
        self._plans: deque[tuple[object, ...]] = deque(maxlen=_RECENT_PLANS)
        self._mending = self._closed = False
        self._dirty = True
        self._begin()
        self._copied = clock()

    # --- life -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        try:
            wrong = self._file.open()
            try:
                rows = rows_of(self._file.run, journal.RECENT)
            except sqlite3.Error as error:
                if not damaged(error):
                    raise
                wrong = str(error)
                self._file.replace()
                rows = rows_of(self._file.run, journal.RECENT)
            unknown = self._recall(rows, lost=bool(wrong))
            wrong = wrong or unknown
            if wrong:
                self._file.run_all(self._everything())
        except (sqlite3.Error, OSError) as error:
            self._recall(self._copied_rows(), lost=True)
            self._degrade(str(error))
            return
        if wrong:
            self._tell_recovered(wrong)
        self._renew_copy()

    def _copied_rows(self) -> Rows:
        try:
            return rows_of(self._file.read_copy, journal.RECENT)
        except (sqlite3.Error, OSError) as error:
            _log.error("the last good copy of the state cannot be read: %s", error)
            return {}

    def _recall(self, rows: Rows, lost: bool) -> str:
        """Fill memory; what the file should have known and did not, in words.

        The processes of a `lost` file are those that have a copy in their folder: its last good
        copy may name some that are long gone.
        """
        found = [records.from_row(row) for row in rows.get("instances", [])]
        own = {} if lost else {row.name: row for row in found if row}
        copies = records.read_copies(self._instances)
        unknown = sorted(copies.keys() - own.keys())
        for name, copy in copies.items():
            if name not in own or own[name].record.generation < copy.record.generation:
                own[name] = copy
        self._saved = own
        self._learned = calibration.from_rows(rows.get("calibration", []))
        self.standing.recall(rows.get("standing", []))
        events = [journal.from_row(row) for row in reversed(rows.get("events", []))]
        self.journal.resume([event for event in events if event], lost or bool(unknown))
        return f"it did not know of {', '.join(unknown)}" if unknown else ""

    def close(self) -> None:
        """Renew the good copy and close the file; what comes later is told to nobody."""
        self.journal.close()
        self._renew_copy()
        self._file.close()
        self.degraded, self._closed = "it was closed", True

    def tend(self) -> None:
        """Try a bad disk again, see that the file is still ours, renew the copy."""
        if self._closed:
            return
        if self.degraded:
            self._try_again()
        elif wrong := self._file.gone():
            self._rebuild(wrong)
        elif self._dirty and self._clock() - self._copied > COPY_EVERY_S:
            self._renew_copy()

    async def keep(self) -> None:
        """Tend the file until cancelled."""
        while True:
            await asyncio.sleep(TEND_S)
            self.tend()

    # --- processes ------------------------------------------------------------------------------

    def save(
        self, fingerprint: str, record: HandleRecord, plan: EnginePlan | None, why: str = ""
    ) -> None:
        """Remember a process, before it is started and again when its pids are known.

        The first of them also notes the plan, with `why` it is run.
        """
        known = self._saved.get(record.name)
        row = Saved(name=record.name, fingerprint=fingerprint, record=record, plan=plan)
        self._saved[record.name] = row
        self._write((insert("instances"), row.row()))
        self._copy(row)
        if plan and (known is None or known.record.generation != record.generation):
            self._note_plan(row, plan, why)

    def forget(self, name: str) -> None:
        """Drop the record of a process that is gone."""
        self._saved.pop(name, None)
        self._write(("DELETE FROM instances WHERE name = ?", (name,)))
        try:
            records.drop_copies(name, self._instances)
        except OSError as error:
            _log.warning("the copy of %s's record stays: %s", name, error)

    def saved(self) -> tuple[Saved, ...]:
        """Every process that was not seen to end."""
        return tuple(self._saved.values())

    def _copy(self, row: Saved) -> None:
        try:
            records.write_copy(row, self._instances)
        except OSError as error:
            _log.warning("the record of %s has no copy: %s", row.name, error)

    # --- plans and events -----------------------------------------------------------------------

    def _note_plan(self, row: Saved, plan: EnginePlan, why: str) -> None:
        why = why or (plan.reasons[-1] if plan.rung and plan.reasons else "wanted")
        generation = row.record.generation
        event = self.add_event(
            "plan.run", row.name, plan=plan.id, rung=plan.rung, generation=generation, why=why
        )
        noted = (event.id, event.at, row.name, generation, why, plan.model_dump_json())
        self._plans.append(noted)
        self._write((insert("plans"), noted))

    def plans(self, limit: int = 20, subject: str | None = None) -> list[dict[str, Any]]:
        """The plans that were run, latest first: id, at, subject, generation, why, plan (JSON)."""
        where, values = ("WHERE subject = ?", [subject]) if subject else ("", [])
        which = f"{where} ORDER BY id DESC LIMIT ?"
        rows = self._read(select("plans", which), (*values, limit))
        if rows is None:
            rows = [row for row in reversed(self._plans) if subject in (None, row[2])][:limit]
        return [dict(zip(TABLES["plans"], row, strict=True)) for row in rows]

    def add_event(self, type: str, subject: str, actor: str = "supervisor", **detail: Any) -> Event:
        """Append one event; `event_types.TYPES` names them all."""
        event = self.journal.add(type, subject, actor, detail)
        self._write((insert("events"), event.row()))
        if event.id % _TRIM_EVERY == 0:
            self._write((older("events"), (KEPT - 1,)))
            self._write((older("plans"), (KEPT_PLANS - 1,)))
        return event

    def events(
        self, limit: int = 100, subject: str | None = None, type: str | None = None
    ) -> tuple[Event, ...]:
        """The latest events, newest first; of one subject, of one type or its family ("engine")."""
        return self._events(limit, subject, type, 0, newest=True)

    def events_after(
        self, after: int, limit: int = 100, subject: str | None = None, type: str | None = None
    ) -> tuple[Event, ...]:
        """The events that came after the one with that id, oldest first."""
        return self._events(limit, subject, type, after, newest=False)

    def _events(
        self, limit: int, subject: str | None, type: str | None, after: int, newest: bool
    ) -> tuple[Event, ...]:
        rows = self._read(*chosen(limit, subject, type, after, newest))
        if rows is not None:
            return tuple(event for row in rows if (event := journal.from_row(row)))
        fitting = [each for each in self.journal.recent() if each.fits(subject, type, after)]
        return tuple(fitting[::-1][:limit] if newest else fitting[:limit])

    # --- what was learned -----------------------------------------------------------------------

    def learn(self, experience: Experience) -> None:
        """Keep what an engine has shown; it takes the place of what was known for its key."""
        if self._learned.get(experience.key.name) == experience:
            return
        self._learned[experience.key.name] = experience
        self._write((insert("calibration"), calibration.row_of(experience)))
        for old in calibration.too_many(self._learned):
            self._unlearn(old)
        self._renew_copy()

    def learned(self) -> tuple[Experience, ...]:
        """Everything that is known, latest first."""
        return tuple(sorted(self._learned.values(), key=lambda each: -each.at))

    def unlearn(self, model: str | None = None) -> int:
        """Forget what was learned of one model, or all of it; how much that was."""
        gone = [name for name, each in self._learned.items() if model in (None, each.key.model)]
        for name in gone:
            self._unlearn(name)
        if gone:
            self._renew_copy()
        return len(gone)

    def _unlearn(self, name: str) -> None:
        del self._learned[name]
        self._write(("DELETE FROM calibration WHERE key = ?", (name,)))

    # --- the disk -------------------------------------------------------------------------------

    def _write(self, statement: Write) -> None:
        self._dirty = True
        if not self.degraded:
            try:
                self._file.run(*statement)
            except sqlite3.Error as error:
                self._trouble(error)

    def _read(self, statement: str, values: tuple[object, ...]) -> list[tuple[object, ...]] | None:
        """Rows of the file, None where memory has to answer."""
        if not self.degraded:
            try:
                return self._file.run(statement, values)
            except sqlite3.Error as error:
                self._trouble(error)
        return None

    def _trouble(self, error: sqlite3.Error) -> None:
        if damaged(error) and not self._mending:
            self._rebuild(str(error))
        else:
            self._degrade(str(error))

    def _rebuild(self, wrong: str) -> None:
        """Write a new file from the last good copy and from memory."""
        self._mending = True
        try:
            self._file.replace()
            self._file.run_all(self._everything())
        except (sqlite3.Error, OSError) as error:
            self._degrade(f"{wrong}; and a new file: {error}")
        else:
            self._tell_recovered(wrong)
        finally:
            self._mending = False

    def _try_again(self) -> None:
        try:
            wrong = self._file.open()
            self._file.run_all(self._everything())
            self._file.copy()
        except (sqlite3.Error, OSError) as error:
            _log.debug("the state file cannot be used yet: %s", error)
            self._file.close()
            return
        self.degraded = ""
        for row in self._saved.values():
            self._copy(row)
        self.add_event("storage.recovered", "state", wrong=wrong)
        _log.info("the state file can be written again")

    def _everything(self) -> Iterator[Write]:
        """What makes a file say what memory knows; older events and plans stay in it."""
        yield "DELETE FROM instances", ()
        yield from ((insert("instances"), row.row()) for row in self._saved.values())
        yield "DELETE FROM calibration", ()
        yield from (
            (insert("calibration"), calibration.row_of(each)) for each in self._learned.values()
        )
        yield from self.standing.writes()
        yield from ((insert("events"), event.row()) for event in self.journal.recent())
        yield from ((insert("plans"), row) for row in self._plans)

    def _degrade(self, why: str) -> None:
        self._file.close()
        if not self.degraded:
            _log.error("state is kept in memory only: %s: %s", self.path, why)
            self.journal.add("storage.degraded", "state", "supervisor", {"why": why})
        self.degraded = why

    def _tell_recovered(self, wrong: str) -> None:
        with suppress(OSError):
            aside = [str(path) for path in self._file.aside()]
            _log.error("state file was mended: %s; bad files are kept: %s", wrong, aside)
            self.add_event(
                "state.recovered", "state", why=wrong, aside=aside, processes=sorted(self._saved)
            )

    def _renew_copy(self) -> None:
        if self.degraded:
            return
        self._copied, self._dirty = self._clock(), False
        try:
            self._file.copy()
        except sqlite3.Error as error:
            self._trouble(error)
        except OSError as error:
            self._degrade(str(error))
