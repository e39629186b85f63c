"""What one request was: the only thing that workers hand over, and that figures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

REJECTED = (429, 503)  # a server's way to say "later": counted apart from failures


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times in seconds: `began` since the phase's start, the others since `began`.

    `events` has one entry per event that carried text; `tokens` and `prompt_tokens` are the
    server's own counts or None; `problem` is empty for a whole answer, else a class of failure;
    `late` is by how much an open loop sent it after it was due.
    """

    began: float
    events: tuple[float, ...]
    ended: float
    status: int = 200
    problem: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    late: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the answer came whole."""
        return not self.problem

    @property
    def output_tokens(self) -> int:
        """The server's count, else the events that carried text."""
        return len(self.events) if self.tokens is None else self.tokens

    @property
    def ttft(self) -> float | None:
        """Seconds from sending to the first event with text."""
        return self.events[0] if self.events else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between each event with text and the one before it."""
        return [b - a for a, b in pairwise(self.events)]

    @property
    def tpot(self) -> float | None:
        """(last event - first event) / (output tokens - 1): seconds per token after the first."""
        if len(self.events) < 2 or self.output_tokens < 2:
            return None
        return (self.events[-1] - self.events[0]) / (self.output_tokens - 1)


def join(rounds: Sequence[Sequence[Record]]) -> list[Record]:
    """Rounds as one run without the pauses between them: each begins where the last one ended."""
    joined: list[Record] = []
    offset = 0.0
    for records in rounds:
        if not records:
            continue
        first = min(record.began for record in records)
        joined += [replace(each, began=each.began - first + offset) for each in records]
        offset += max(record.began + record.ended for record in records) - first
    return joined


_MICRO = 1e6


def pack(record: Record) -> list[Any]:
    """A record as short JSON: microseconds, the events as differences."""
    micros = [round(each * _MICRO) for each in record.events]
    steps = [b - a for a, b in zip([0, *micros], micros, strict=False)]
    return [
        round(record.began * _MICRO), steps, round(record.ended * _MICRO), record.status,
        record.problem, record.tokens, record.prompt_tokens, round(record.late * _MICRO),
    ]  # fmt: skip


def unpack(row: Sequence[Any]) -> Record:
    """The record behind `pack`, to the microsecond."""
    at, events = 0, []
    for step in row[1]:
        at += step
        events.append(at / _MICRO)
    return Record(
        row[0] / _MICRO, tuple(events), row[2] / _MICRO, row[3], row[4], row[5], row[6],
        row[7] / _MICRO,
    )  # fmt: skip
