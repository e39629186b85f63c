"""What can be seen of an engine at work, as data: its counters, its log's phases, its sleep."""

from __future__ import annotations

from pydantic import Field, JsonValue

from engine_launchers.series import SeriesRule
from engine_launchers.value import Value


class PhaseRule(Value):
    """One step of a start, known by a line of the log.

    `percent` of the whole start lies behind when it begins. A group called `percent` in `pattern`
    tells how much of the step itself is done; the step ends at `until`.
    """

    pattern: str
    name: str
    percent: float = Field(ge=0, le=100)
    until: float | None = Field(None, ge=0, le=100)


class Call(Value):
    """One POST; `path` with its query."""

    path: str
    body: dict[str, JsonValue] | None = None


class SleepTraits(Value):
    """The calls that put an engine to sleep and wake it, in order, by the depth of the sleep."""

    down: dict[int, tuple[Call, ...]]
    up: dict[int, tuple[Call, ...]]


class WatchTraits(Value):
    """How progress of one engine shows.

    `counters` are series of `metrics_path` of which one changes with every step of its work; they
    may be gauges. None at all: only what it sends, and its processor time, tell. `serial`: one
    request at a time, so that a canary would wait for the very request that it is to judge.
    `sleep` is None for an engine that cannot. `series` says what else `metrics_path` tells.
    """

    metrics_path: str | None = None
    counters: tuple[str, ...] = ()
    phases: tuple[PhaseRule, ...] = ()
    serial: bool = False
    sleep: SleepTraits | None = None
    series: tuple[SeriesRule, ...] = ()
