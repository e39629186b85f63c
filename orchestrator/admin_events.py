"""What happened and what was learned, in the control API: events, plans, calibration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import StreamingResponse

from orchestrator.errors import BadRequest
from orchestrator.planning.experience import Experience
from orchestrator.supervision.journal import Event
from orchestrator.supervision.store import Store

KEEPALIVE_S = 15.0
END = "event: end\ndata: {}\n\n"
_BATCH = 100
_RETRY_MS = 1000
_TYPE = Query(max_length=100, description="One type, or a family: `engine` for all `engine.*`.")


def add_events(
    app: FastAPI, store: Store, guard: list[Any], keepalive_s: float = KEEPALIVE_S
) -> None:
    """Add the paths below /admin/events, /admin/plans and /admin/calibration."""

    @app.get("/admin/events", dependencies=guard, tags=["history"])
    async def events(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        subject: str | None = None,
        type: Annotated[str | None, _TYPE] = None,
    ) -> dict[str, tuple[Event, ...]]:
        """What happened, newest first."""
        return {"events": store.events(limit, subject, type)}

    @app.get("/admin/events/stream", dependencies=guard, tags=["history"])
    async def stream(
        request: Request,
        subject: str | None = None,
        type: Annotated[str | None, _TYPE] = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> StreamingResponse:
        """What happens, as server-sent events: `id`, `event` (the type), `data` (the event).

        With `Last-Event-ID` it begins after that one, without it with what comes next. A comment
        keeps a quiet connection open; `event: end` is the last one, when the server shuts down.
        """
        after = _resumed(last_event_id, store)
        lines = follow(store, after, subject, type, keepalive_s)
        return StreamingResponse(
            lines, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    @app.get("/admin/plans", dependencies=guard, tags=["history"])
    async def plans(
        limit: Annotated[int, Query(ge=1, le=1000)] = 20, engine: str | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """The plans that were run, with when and why, latest first."""
        rows = store.plans(limit, engine)
        return {"plans": [{**row, "plan": json.loads(row["plan"])} for row in rows]}

    @app.get("/admin/calibration", dependencies=guard, tags=["history"])
    async def calibration() -> dict[str, tuple[Experience, ...]]:
        """What engines have shown of themselves, latest first."""
        return {"calibration": store.learned()}

    @app.delete("/admin/calibration", dependencies=guard, tags=["history"])
    async def forget(model: str | None = None) -> dict[str, int]:
        """Forget what was learned of one model, or all of it."""
        count = store.unlearn(model)
        store.add_event("calibration.cleared", model or "all", actor="admin", count=count)
        return {"forgotten": count}


def _resumed(last_event_id: str | None, store: Store) -> int:
    if last_event_id is None:
        return store.journal.last
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 18:
        raise BadRequest("Last-Event-ID: give the id of an event, a number", param="last-event-id")
    return int(last_event_id)


async def follow(
    store: Store, after: int, subject: str | None, type: str | None, keepalive_s: float
) -> AsyncIterator[str]:
    """Server-sent events after the one with that id, until the journal is closed."""
    yield f"retry: {_RETRY_MS}\n\n"
    last = min(after, store.journal.last)
    while True:
        newest = store.journal.last
        while rows := store.events_after(last, _BATCH, subject, type):
            yield "".join(_frame(event) for event in rows)
            last = rows[-1].id
        last = max(last, newest)
        if store.journal.closed:
            break
        try:
            async with asyncio.timeout(keepalive_s):
                await store.journal.wait(last)
        except TimeoutError:
            yield ": nothing new\n\n"
    yield END


def _frame(event: Event) -> str:
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
