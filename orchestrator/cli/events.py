"""`engineroom events`: what happened, and what happens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from orchestrator.cli.client import ask, checked, find_server
from orchestrator.cli.options import DataDir, Json, out, print_json
from orchestrator.cli.show import columns, print_plain
from orchestrator.errors import ControlUnavailable
from orchestrator.settings import load_settings
from orchestrator.supervision.journal import left

_HEAD = ("TIME", "TYPE", "SUBJECT", "ACTOR", "DETAIL")
_AWAY_S = 60.0  # how long a supervisor may be away, between one and the next
_PAUSE_S = 0.5
_SILENCE_S = 60.0  # the server breaks every silence after a quarter of that

Limit = Annotated[int, typer.Option("--limit", "-n", min=0, max=1000, help="Latest events.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with those that come.")]
Subject = Annotated[str | None, typer.Option(help="Only of this engine or model.")]
Type = Annotated[str | None, typer.Option(help="Only of this type, or family: `engine`.")]


def events(
    limit: Limit = 50,
    follow: Follow = False,
    subject: Subject = None,
    type: Type = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What happened, oldest first; --follow goes on, also over a restart of the supervisor."""
    chosen = {key: value for key, value in (("subject", subject), ("type", type)) if value}
    rows = _latest(data_dir, max(limit, 1), subject, type, running=follow)
    shown = rows[len(rows) - limit :] if limit < len(rows) else rows
    if as_json:
        for row in shown:
            print_json(row)
    elif shown or not follow:
        columns(out(), [_HEAD, *map(_cells, shown)])
    sys.stdout.flush()
    if not follow:
        return
    for row in _followed(data_dir, chosen, rows[-1]["id"] if rows else None):
        if as_json:
            print_json(row)
        else:
            print_plain(out(), "  ".join(_cells(row)))
        sys.stdout.flush()


def _latest(
    data_dir: Path | None, limit: int, subject: str | None, type: str | None, running: bool
) -> list[dict[str, Any]]:
    """Oldest first: from the running server, or, unless it must be that, what the last one left.

    Raises ControlUnavailable where there is neither.
    """
    chosen = {"limit": limit, "subject": subject, "type": type}
    query = httpx.QueryParams({key: value for key, value in chosen.items() if value is not None})
    try:
        answer = ask(find_server(data_dir), "GET", f"/admin/events?{query}")
    except ControlUnavailable:
        state = load_settings({"data_dir": data_dir}).data / "state.db"
        rows = () if running else left(state, limit, subject, type)
        if not rows:
            raise
        sys.stderr.write("no server runs here: this is what the last one left\n")
        return [row.model_dump(mode="json") for row in reversed(rows)]
    return list(reversed(answer["events"]))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    at = datetime.fromtimestamp(row["at"]).astimezone()
    detail = " ".join(f"{key}={_word(value)}" for key, value in row["detail"].items())
    return f"{at:%Y-%m-%d %H:%M:%S}", row["type"], row["subject"], row["actor"], detail


def _word(value: object) -> str:
    """One value of a detail, in quotes where it has blanks."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def _followed(
    data_dir: Path | None, params: dict[str, str], last: int | None
) -> Iterator[dict[str, Any]]:
    """Each event after `last` as it comes, until the server ends.

    Raises ControlUnavailable where a supervisor that went away does not come back.
    """
    seen = time.monotonic()
    while True:
        try:
            for name, data in _stream(data_dir, params, last):
                seen = time.monotonic()
                if name == "end":
                    return
                row = json.loads(data)
                last = row["id"]
                yield row
        except (httpx.HTTPError, ControlUnavailable) as error:
            if time.monotonic() - seen > _AWAY_S:
                raise ControlUnavailable(
                    f"the supervisor went away and did not come back within {_AWAY_S:.0f} s"
                ) from error
        time.sleep(_PAUSE_S)


def _stream(
    data_dir: Path | None, params: dict[str, str], last: int | None
) -> Iterator[tuple[str, str]]:
    """The name and data of each server-sent event of one connection."""
    headers = {} if last is None else {"last-event-id": str(last)}
    limits = httpx.Timeout(10, read=_SILENCE_S)
    with (
        find_server(data_dir).admin_client() as client,
        client.stream(
            "GET", "/admin/events/stream", params=params, headers=headers, timeout=limits
        ) as answer,
    ):
        if answer.is_error:
            answer.read()
            checked(answer)
        name = ""
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, value
