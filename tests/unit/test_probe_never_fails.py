"""Whatever a machine's files, programs and driver say, there is a profile, and it is sound."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.hardware.facts import Facts, assemble
from orchestrator.hardware.files import Recorded
from tests.machines import facts, names

RUBBISH = st.one_of(
    st.sampled_from(["", "0", "-1", "-5", "max", "0x", "9" * 30, "a: b", "1 2\n3", "0-", "\x00"]),
    st.text(max_size=40),
)
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers()),
    st.dictionaries(st.text(max_size=5), st.integers()),
)  # fmt: skip
EXAMPLES = 40
RECORDED = {name: facts(name) for name in names()}


def check(machine: Facts) -> None:
    """A profile that can be printed and read back."""
    profile = assemble(machine)
    assert profile.cpu_cores >= 1
    assert 0 <= profile.ram_available <= profile.ram_total
    assert type(profile).model_validate_json(profile.model_dump_json()) == profile


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_rubbish_in_files_and_environment(data: st.DataObject) -> None:
    machine = replace(RECORDED[data.draw(st.sampled_from(names()))], ram=(2**34, 2**33))
    assert isinstance(machine.files, Recorded)
    texts = dict(machine.files.texts)
    for path in data.draw(st.lists(st.sampled_from(sorted(texts) or ["/x"]), max_size=4)):
        texts[path] = data.draw(RUBBISH)
    env = {**machine.env, **data.draw(st.dictionaries(
        st.sampled_from(["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]),
        RUBBISH, max_size=2,
    ))}  # fmt: skip
    check(replace(machine, files=Recorded(texts), env=env))


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_rubbish_in_the_drivers_answer(data: st.DataObject) -> None:
    asked = [name for name in names() if isinstance(RECORDED[name].nvml, dict)]
    machine = replace(RECORDED[data.draw(st.sampled_from(asked))], ram=(2**34, 2**33))
    document = json.loads(json.dumps(machine.nvml))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = document
        while isinstance(place, dict | list) and place:
            key = data.draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            if data.draw(st.booleans()) or not isinstance(place[key], dict | list):
                place[key] = data.draw(ANYTHING)
                break
            place = place[key]
    check(replace(machine, nvml=document))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(), st.text(), st.sampled_from(["darwin", "windows", "linux"]))
def test_rubbish_from_a_macs_programs(sysctl: str, displays: str, system: str) -> None:
    check(
        Facts(
            files=Recorded({}),
            system=system,
            machine="arm64",
            nvml="none",
            ram=(2**34, 2**33),
            env={},
            sysctl=f"machdep.cpu.brand_string: Apple M1\n{sysctl}",
            displays=displays,
        )
    )
