"""What a supervisor does with processes of an earlier one that nobody can say anything of."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, cast

from engine_launchers.base import LaunchSpec
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import Handle, HandleRecord
from orchestrator.runtimes.external import ExternalRuntime
from orchestrator.supervision.crew import Crew
from orchestrator.supervision.store import Store
from orchestrator.supervision.succession import Succession


class Silent(ExternalRuntime):
    """Cannot say of "silent" what became of it; of all others nothing is left."""

    async def recover(self, record: HandleRecord) -> Handle | None:
        if record.name == "silent":
            raise LaunchFailed("nobody answers")
        return None


async def test_one_that_cannot_be_found_out_about_costs_its_own_place_only(tmp_path: Path) -> None:
    runtime, unused = Silent(), cast(Any, None)
    with closing(Store(tmp_path / "state.db")) as store:
        for name in ("first", "silent", "third"):
            store.save("wish", runtime.record(name, 1, LaunchSpec(argv=("x",))), None)
        saved = {row.name: row for row in store.saved()}
        succession = Succession(Crew(), unused, store, {"external": runtime}, 1)
        assert await succession.adopt(saved) == set()
        assert [row.name for row in store.saved()] == ["silent"]
        (told,) = store.events(type="engine.left")
    assert told.subject == "silent"
    assert told.detail == {"why": "nobody answers"}
