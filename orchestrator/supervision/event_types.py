"""Every type of event, with what it tells. The names are stable: programs branch on them.

`docs/reference/events.md` is made of this table; a test holds the code to it.
"""

from __future__ import annotations

from collections.abc import Mapping

TYPES: Mapping[str, str] = {
    "engine.state": "An engine or gateway went from state `old` to `new`, and `why`.",
    "engine.adopted": "A process of an earlier supervisor was found alive and taken over.",
    "engine.unwanted": "A process of an earlier supervisor is not wanted any more and is stopped.",
    "plan.run": "A launch was begun with a `plan` at a `rung`; `GET /admin/plans` has all of it.",
    "model.start": "An operator started a model.",
    "model.stop": "An operator stopped a model.",
    "model.restart": "An operator restarted a model.",
    "calibration.cleared": "An operator had what was learned forgotten; `count` experiences.",
    "storage.degraded": "State is kept in memory only, and `why`; serving goes on.",
    "storage.recovered": "The disk can be written again, and has all that memory had.",
    "state.recovered": "The state file was lost or damaged (`why`) and made again; `aside` lists "
    "the bad files that are kept, `processes` those that are known.",
    "shutdown": "The server was told to end.",
}
