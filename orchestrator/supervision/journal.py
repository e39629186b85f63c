"""The latest events, in memory: they are kept and followed whatever the disk does."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from engine_launchers.value import Value
from orchestrator.supervision.database import read_left
from orchestrator.supervision.schema import chosen

RECENT = 1_000  # events that memory keeps
_MOST = 1 << 52  # ids beyond that were made by damage


class Event(Value):
    """One thing that happened. `at` is seconds since the epoch; ids only ever grow.

    `type` is one of `event_types.TYPES`, `subject` whom it is about, `actor` who did it.
    """

    id: int = Field(gt=0)
    at: float = Field(allow_inf_nan=False)
    actor: str
    type: str
    subject: str
    detail: dict[str, JsonValue] = Field(default_factory=dict)

    def fits(self, subject: str | None, type: str | None, after: int = 0) -> bool:
        """Whether it is newer, about that subject, and of that type or family; None: any."""
        named = type is None or self.type == type or self.type.startswith(f"{type}.")
        return self.id > after and subject in (None, self.subject) and named

    def row(self) -> tuple[object, ...]:
        """The columns of its row."""
        detail = json.dumps(self.detail)
        return (self.id, self.at, self.actor, self.type, self.subject, detail)


def from_row(row: tuple[object, ...]) -> Event | None:
    """What `Event.row` gave, None where that cannot be read any more."""
    number, at, actor, type, subject, detail = row
    if not isinstance(number, int) or number > _MOST:
        return None
    try:
        fields = {"id": number, "at": at, "actor": actor, "type": type, "subject": subject}
        return Event.model_validate({**fields, "detail": json.loads(str(detail))})
    except (ValueError, RecursionError):
        return None


def left(path: Path, limit: int, subject: str | None, type: str | None) -> tuple[Event, ...]:
    """The latest events in a state file that no supervisor holds, newest first; none: no file."""
    try:
        rows = read_left(path, *chosen(limit, subject, type))
    except sqlite3.Error:
        return ()
    return tuple(event for row in rows if (event := from_row(row)))


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The same as any JSON reader takes it: no NaN, no half of a surrogate pair, no objects."""
    text = json.dumps(fields, default=str, skipkeys=True, ensure_ascii=False)
    loaded = json.loads(text.encode(errors="replace"), parse_constant=str)
    return dict(loaded)


class Journal:
    """A bounded list of events, and those who wait for the next one. Used from one thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.last = 0
        self.closed = False
        self._clock = clock
        self._recent: deque[Event] = deque(maxlen=RECENT)
        self._waiters: set[asyncio.Future[None]] = set()

    def resume(self, known: Iterable[Event], lost: bool) -> None:
        """Go on after the events of an earlier run, oldest first.

        Where some may be `lost`, ids go on at the time in seconds: above any that was ever given,
        as long as there was less than one event a second since 1970.
        """
        self._recent.clear()
        for event in known:
            self._recent.append(event)
            self.last = max(self.last, event.id)
        if lost:
            self.last = max(self.last, int(self._clock()))

    def add(self, type: str, subject: str, actor: str, detail: dict[str, Any]) -> Event:
        """Append an event and wake whoever waits for it."""
        fields = {"actor": actor, "type": type, "subject": subject, "detail": detail}
        self.last += 1
        event = Event(id=self.last, at=self._clock(), **_plain(fields))
        self._recent.append(event)
        self._wake()
        return event

    def recent(self) -> tuple[Event, ...]:
        """What memory has, oldest first."""
        return tuple(self._recent)

    async def wait(self, after: int) -> None:
        """Return when there is an event newer than `after`, or there will be no more."""
        while self.last <= after and not self.closed:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def close(self) -> None:
        """There will be no more: whoever waits is told."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
