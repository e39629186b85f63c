"""Every type of event, with what it tells. The names are stable: programs branch on them.

`docs/reference/events.md` is made of this table; a test holds the code to it.
"""

from __future__ import annotations

from collections.abc import Mapping

TYPES: Mapping[str, str] = {
    "engine.state": "An engine or gateway went from state `old` to `new`, and `why`.",
    "engine.adopted": "A process of an earlier supervisor was found alive and taken over.",
    "engine.shim_lost": "A shim was lost while its engine lived; `another` one, a pid, took over.",
    "engine.unwanted": "A process of an earlier supervisor is not wanted any more and is stopped.",
    "engine.left": "What became of a process cannot be known now, and `why`; its record is kept, a "
    "later start finds it.",
    "plan.run": "A launch was begun with a `plan` at a `rung`; `GET /admin/plans` has all of it.",
    "engine.drain": "An operator had one engine drained and stopped.",
    "model.load": "A model is loaded, and `why`: a request, a preload, an operator.",
    "model.unload": "A model is unloaded, and `why`: idle, another needs its place, an operator.",
    "model.sleep": "A model's engines are put to sleep at `level`, and `why`.",
    "model.waits": "A model or engine waits for memory or a place, and `why`, with the numbers.",
    "model.refused": "A model cannot be loaded whatever leaves, and `why`.",
    "model.stop": "An operator stopped a model.",
    "model.restart": "An operator restarted a model.",
    "model.scale": "An operator set how many engines a model has: `replicas`.",
    "model.pin": "An operator pinned a model: it never leaves for another.",
    "model.unpin": "An operator allowed again that a model leaves.",
    "model.order_stands": "An order of before this supervisor still counts: that a model is `off`, "
    "its `pin`, its `replicas`.",
    "model.roll_failed": "A new engine of a model did not come up; the old one serves on.",
    "config.reloaded": "Settings were read anew: models `added`, `removed`, `changed`, `kept`.",
    "config.rejected": "Settings were read anew and are not valid, and `why`; the old ones stay.",
    "calibration.cleared": "An operator had what was learned forgotten; `count` experiences.",
    "key.created": "An operator made an API key.",
    "key.changed": "An operator changed what an API key may do: the `changed` fields.",
    "key.revoked": "An operator revoked an API key.",
    "storage.degraded": "State is kept in memory only, and `why`; serving goes on.",
    "storage.recovered": "The disk can be written again, and has all that memory had.",
    "state.recovered": "The state file was lost or damaged (`why`) and made again; `aside` lists "
    "the bad files that are kept, `processes` those that are known.",
    "runtime.lost": "The Docker Engine does not answer, and `why`; `held` containers are left "
    "as they are until it does.",
    "runtime.back": "The Docker Engine answers again after `seconds`; of the containers that are "
    "held `running` run on and `ended` have ended.",
    "runtime.leftover": "A container of this installation that nobody holds is removed.",
    "shutdown": "The server was told to end.",
}
