"""What engines have shown of themselves: how it is stored, and who watches them for it.

memory = remembered(data)                    # before a plan, without the store
key = key_of(plan, hardware)
plan = experienced(plan, memory.get(key.name))
learner = Learner(store.learn, key, memory.get(key.name))
learner.ready(plan, seconds); learner.sample(plan, {"ram": bytes}); learner.held(plan)
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from engine_launchers.base import EnginePlan, Tuning
from orchestrator.planning.experience import Experience, Key, merged
from orchestrator.supervision.database import copy_of, read_only
from orchestrator.supervision.schema import seal, select

MOST = 500  # experiences that are kept
_SPEEDS = 50  # latest measured speeds whose median counts
_NEWS = 0.05  # a figure that changed by less is not written again
_log = logging.getLogger("engineroom.store")


def row_of(experience: Experience) -> tuple[str, float, str, str]:
    """The columns of its row: key, at, experience, seal."""
    columns = (experience.key.name, experience.at, experience.model_dump_json())
    return (*columns, seal(*columns))


def from_rows(rows: Iterable[tuple[object, ...]]) -> dict[str, Experience]:
    """Experiences by the name of their key; a row that was damaged is reported and left out."""
    found: dict[str, Experience] = {}
    for key, at, text, mark in rows:
        try:
            if seal(key, at, text) != mark:
                raise ValueError("its seal does not fit")
            experience = Experience.model_validate_json(str(text))
        except (ValueError, ValidationError) as error:
            _log.warning("what was learned as %s cannot be read: %s", key, error)
        else:
            found[experience.key.name] = experience
    return found


def too_many(known: Mapping[str, Experience]) -> list[str]:
    """The names of the oldest, where there are more than are kept."""
    by_age = sorted(known, key=lambda name: known[name].at)
    return by_age[: max(0, len(known) - MOST)]


def remembered(data: Path) -> dict[str, Experience]:
    """What the supervisors of a data directory have learned, by key; nothing where none ran.

    Reads the good copy of their state, which stands still while a supervisor writes.
    """
    try:
        rows = read_only(copy_of(data / "state.db"), select("calibration"))
    except sqlite3.Error as error:
        _log.warning("what was learned before cannot be read: %s", error)
        return {}
    return from_rows(rows)


class Learner:
    """Watches one engine, and passes on what its plan has shown once it is seen to hold.

    `key` is that of the plan as it was made. A plan of another engine, taken when no rung was left,
    is learned under the same key with that engine's name and version.
    """

    def __init__(
        self,
        learn: Callable[[Experience], None],
        key: Key,
        known: Experience | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._learn, self._key, self._known, self._clock = learn, key, known, clock
        self._tuning: Tuning | None = None
        self._forget_samples()

    def _forget_samples(self) -> None:
        self._memory: dict[str, int] = {}
        self._load_seconds: float | None = None
        self._speeds: deque[float] = deque(maxlen=_SPEEDS)
        self._held = False

    def ready(self, plan: EnginePlan, seconds: float) -> None:
        """It took `seconds` from its launch to its first token."""
        self._turn_to(plan)
        self._load_seconds = seconds

    def sample(self, plan: EnginePlan, memory: Mapping[str, int]) -> None:
        """It holds that many bytes now, by device ("ram", "gpu:0"); the most of them counts."""
        self._turn_to(plan)
        for device, size in memory.items():
            self._memory[device] = max(size, self._memory.get(device, 0))
        self._tell(plan)

    def speed(self, plan: EnginePlan, tokens_per_second: float) -> None:
        """One stream was decoded at that rate."""
        self._turn_to(plan)
        if tokens_per_second > 0:
            self._speeds.append(tokens_per_second)
            self._tell(plan)

    def held(self, plan: EnginePlan) -> None:
        """The plan was in service for as long as proves it."""
        self._turn_to(plan)
        self._held = True
        self._tell(plan)

    def _turn_to(self, plan: EnginePlan) -> None:
        if plan.tuning != self._tuning:
            self._tuning = plan.tuning
            self._forget_samples()

    def _tell(self, plan: EnginePlan) -> None:
        if not self._held:
            return
        own = {"engine": plan.engine, "version": plan.engine_version}
        speed = median(self._speeds) if self._speeds else None
        found = merged(
            self._known, plan, self._key.model_copy(update=own), self._clock(),
            self._memory, self._load_seconds, speed,
        )  # fmt: skip
        if self._known is None or _news(self._known, found):
            self._known = found
            self._learn(found)


def _news(old: Experience, new: Experience) -> bool:
    """Whether anything but the time, or by a little, has changed."""
    if (old.key, old.rung, old.tuning) != (new.key, new.rung, new.tuning):
        return True
    if old.memory.keys() != new.memory.keys():
        return True
    pairs: list[tuple[float | None, float | None]] = [
        (old.memory[device], new.memory[device]) for device in old.memory
    ]
    pairs += [(old.load_seconds, new.load_seconds)]
    pairs += [(old.tokens_per_second, new.tokens_per_second)]
    return any(a is None or abs(b - a) > _NEWS * a for a, b in pairs if b is not None)
