"""What a supervisor has to know to adopt a process, and its copy in the process's own folder.

The copies are what a lost state file is rebuilt from. `saved.json` is one line of JSON, and one
with its seal: a copy that was damaged too is no copy.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from engine_launchers.base import EnginePlan
from orchestrator.runtimes.base import HandleRecord
from orchestrator.supervision.schema import seal

COPY = "saved.json"
_log = logging.getLogger("engineroom.store")


class Saved(BaseModel):
    """A process as an earlier supervisor knew it. `fingerprint` names the wish it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    record: HandleRecord
    plan: EnginePlan | None = None

    def row(self) -> tuple[str, str, str, str | None, str]:
        """The columns of its row, with their seal."""
        plan = self.plan.model_dump_json() if self.plan else None
        columns = (self.name, self.fingerprint, self.record.model_dump_json(), plan)
        return (*columns, seal(*columns))


def from_row(row: tuple[object, ...]) -> Saved | None:
    """What `Saved.row` gave, None where that cannot be read any more."""
    name, fingerprint, record, plan, found = row
    if seal(name, fingerprint, record, plan) != found:
        return None
    try:
        parts = {
            "name": name,
            "fingerprint": fingerprint,
            "record": json.loads(str(record)),
            "plan": json.loads(str(plan)) if plan is not None else None,
        }
        # From text, as JSON is: a set stands in it as a list.
        return Saved.model_validate_json(json.dumps(parts))
    except (ValueError, RecursionError) as error:  # a record of another version
        _log.warning("record of %s cannot be read and is dropped: %s", name, error)
        return None


def write_copy(saved: Saved, instances: Path) -> None:
    """Put a copy beside the shim's `pid.json`; a process without a folder of ours gets none.

    Raises OSError.
    """
    folder = saved.record.folder
    if not folder.is_relative_to(instances):
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = saved.model_dump_json()
    fresh = folder / f"{COPY}.new"
    fresh.write_text(f"{text}\n{seal(text)}\n")
    os.replace(fresh, folder / COPY)


def drop_copies(name: str, instances: Path) -> None:
    """Remove the copies of every generation of a name. Raises OSError."""
    for file in (instances / name).glob(f"*/{COPY}"):
        file.unlink(missing_ok=True)


def read_copies(instances: Path) -> dict[str, Saved]:
    """The copy of each name's latest generation. What cannot be read is reported and left out."""
    found: dict[str, Saved] = {}
    try:
        files = sorted(instances.glob(f"*/*/{COPY}"))
    except OSError as error:
        _log.warning("%s cannot be searched: %s", instances, error)
        return {}
    for file in files:
        saved = _read(file)
        if saved is None or saved.record.folder != file.parent:
            continue
        known = found.get(saved.name)
        if known is None or known.record.generation < saved.record.generation:
            found[saved.name] = saved
    return found


def _read(file: Path) -> Saved | None:
    try:
        text, found, *_ = file.read_text(errors="replace").split("\n")
        if seal(text) != found:
            raise ValueError("its seal does not fit")
        return Saved.model_validate_json(text)
    except (OSError, ValueError, ValidationError) as error:
        _log.warning("%s cannot be used: %s", file, error)
        return None
