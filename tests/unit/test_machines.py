"""Every recorded machine comes to what was written down for it by hand.

`expected.json` names fields of the profile. A GPU's entry names what must hold of it, in order;
`vram_total_mib` and `vram_free_mib` are those fields in MiB, as drivers print them. `links` is each
pair with its kind and lanes, or for machines with many, how many there are of which kind. `notes`
has for every note, in order, words that it must contain.
"""

from __future__ import annotations

from typing import Any

import pytest

from engine_launchers.machine import Gpu, HardwareProfile
from orchestrator.hardware.facts import assemble
from tests.machines import expected, facts, machines, names

ALWAYS = {"gpus", "links", "ram_total", "ram_available", "cpu_cores", "isa", "notes"}


@pytest.mark.parametrize("name", names())
def test_a_recorded_machine(name: str) -> None:
    profile, wanted = assemble(facts(name)), expected(name)
    assert set(wanted) >= ALWAYS
    shown = profile.model_dump(mode="json")
    plain = {key: shown[key] for key in wanted if key not in ("gpus", "links", "notes")}
    assert plain == {key: wanted[key] for key in plain}
    assert len(profile.gpus) == len(wanted["gpus"])
    pairs = zip(profile.gpus, wanted["gpus"], strict=True)
    assert [seen(gpu, want) for gpu, want in pairs] == wanted["gpus"]
    assert len(profile.notes) == len(wanted["notes"]), profile.notes
    for note, words in zip(profile.notes, wanted["notes"], strict=True):
        assert words in note
    check_links(profile, wanted["links"])
    assert HardwareProfile.model_validate_json(profile.model_dump_json()) == profile


def seen(gpu: Gpu, wanted: dict[str, Any]) -> dict[str, Any]:
    """The fields of `gpu` that `wanted` names."""
    shown = gpu.model_dump(mode="json")
    for name in ("vram_total", "vram_free"):
        shown[f"{name}_mib"] = shown[name] / 2**20
    return {key: shown[key] for key in wanted}


def check_links(profile: HardwareProfile, wanted: Any) -> None:
    """Exact pairs, or a count of equal ones over all pairs."""
    if isinstance(wanted, list):
        assert [[link.a, link.b, link.kind, link.lanes] for link in profile.links] == wanted
        return
    assert len({(link.a, link.b) for link in profile.links}) == len(profile.links)
    assert len(profile.links) == wanted["count"]
    for link in profile.links:
        assert link.a < link.b
        assert (link.kind, link.lanes) == (wanted["kind"], wanted["lanes"])


def test_there_are_many_and_their_gpus_are_told_apart() -> None:
    every = machines()
    assert len(every) >= 25
    for name, profile in every.items():
        assert len({gpu.uuid for gpu in profile.gpus}) == len(profile.gpus), name
        assert len({gpu.index for gpu in profile.gpus}) == len(profile.gpus), name
        assert all(0 < gpu.vram_total >= gpu.vram_free for gpu in profile.gpus), name
