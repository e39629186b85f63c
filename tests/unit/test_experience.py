"""What was learned: it makes the next plan truer, and never bolder than a person or the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_launchers.base import CrashCause, EnginePlan, Tuning
from orchestrator.cli.calibration import clear, list_learned
from orchestrator.planning.experience import Experience, experienced, key_of
from orchestrator.supervision import calibration
from orchestrator.supervision.calibration import Learner, remembered
from orchestrator.supervision.store import Store
from tests.plans import box, launchers, planned

GIB = 2**30
BOX = box("RTX 4090")
PLAN = planned("mistral-7b-instruct-v0.3", BOX)
KEY = key_of(PLAN, BOX)
DAY = 1_700_000_000.0  # 2023-11-14


def relaxed(plan: EnginePlan, times: int) -> EnginePlan:
    """The plan after that many failures for want of memory."""
    for _ in range(times):
        smaller = launchers()[plan.engine].relax(plan, CrashCause.GPU_OOM)
        assert smaller is not None
        plan = smaller
    return plan


def seen(plan: EnginePlan, **more: object) -> Experience:
    own = {"rung": plan.rung, "tuning": plan.tuning, "estimate": plan.estimate}
    return Experience.model_validate({"key": KEY, "at": DAY, **own, **more})


def test_nothing_known_changes_nothing() -> None:
    assert experienced(PLAN, None) == PLAN


def test_what_was_measured_takes_the_place_of_what_was_guessed() -> None:
    (part,) = PLAN.estimate
    measured = part.weights + part.kv + part.activations // 2
    known = seen(PLAN, memory={"gpu:0": measured}, tokens_per_second=71.5, load_seconds=12.25)
    plan = experienced(PLAN, known)
    assert plan.estimate[0].total == measured
    assert plan.expected.tokens_per_second == (71.5, 71.5)
    assert plan.expected.source == "measured here on 2023-11-14"
    told = plan.reasons[len(PLAN.reasons) :]
    assert told[0].startswith("measured here on 2023-11-14, gpu:0: ")
    assert told[1:] == (
        "measured here on 2023-11-14: 71.5 tokens/s for one stream",
        "loaded in 12.2 s here on 2023-11-14",
    )
    # Not yet touched weights and cache count all the same; more than the estimate does too.
    low, high = (
        experienced(PLAN, seen(PLAN, memory={"gpu:0": size})).estimate[0].total
        for size in (1, part.total + GIB)
    )
    assert (low, high) == (part.weights + part.kv, part.total + GIB)


def test_a_speed_counts_where_one_stream_is_decoded_alike() -> None:
    assert PLAN.expected.tokens_per_second is not None
    low, high = PLAN.expected.tokens_per_second
    fewer = PLAN.tuning.model_copy(update={"max_concurrency": 1})
    plan = experienced(PLAN, seen(PLAN, tuning=fewer, tokens_per_second=high + 9))
    told = f"{high + 9:.1f} tokens/s for one stream, not {low:.1f} to {high:.1f}"
    assert plan.reasons[-1] == f"measured here on 2023-11-14: {told}"
    other = PLAN.tuning.model_copy(update={"gpu_layers": 3})
    assert experienced(PLAN, seen(PLAN, tuning=other, tokens_per_second=9.0)) == PLAN


def test_the_next_plan_begins_on_the_rung_that_held() -> None:
    held = relaxed(PLAN, 3)
    measured = held.estimate[0].total + GIB
    plan = experienced(PLAN, seen(held, memory={"gpu:0": measured}))
    assert (plan.rung, plan.tuning) == (3, held.tuning)
    assert plan.estimate[0].total == measured
    assert plan.estimate[0].kv == held.estimate[0].kv
    assert "what held here on 2023-11-14, after 3 failures" in plan.reasons[len(PLAN.reasons)]
    # The figures of another tuning are no figures of this one.
    pinned = PLAN.model_copy(update={"pinned": frozenset({"max_concurrency", "batch"})})
    kept = experienced(pinned, seen(held, memory={"gpu:0": 20 * GIB}))
    assert kept.tuning.max_concurrency == PLAN.tuning.max_concurrency
    assert kept.estimate == PLAN.estimate


NUMBERS = ("max_model_len", "max_concurrency", "batch", "gpu_memory_fraction", "gpu_layers")


@st.composite
def tunings(draw: st.DrawFn) -> Tuning:
    """Tunings of any size."""
    some = st.none() | st.integers(1, 9000)
    return Tuning(
        max_model_len=draw(some),
        max_concurrency=draw(some),
        batch=draw(some),
        gpu_memory_fraction=draw(st.none() | st.floats(0.1, 1)),
        gpu_layers=draw(st.none() | st.integers(-1, 80)),
        kv_cache_dtype=draw(st.sampled_from([None, "fp8", "q8_0"])),
    )


@given(tunings(), tunings(), st.sets(st.sampled_from(NUMBERS)), st.integers(0, 5))
def test_it_never_asks_for_more_and_never_touches_a_pin(
    own: Tuning, held: Tuning, pins: set[str], rung: int
) -> None:
    plan = PLAN.model_copy(update={"tuning": own, "pinned": frozenset(pins)})
    known = Experience(key=KEY, at=DAY, rung=rung, tuning=held, memory={"gpu:0": 5 * GIB})
    made = experienced(plan, known)
    for name in NUMBERS:
        before, after = getattr(own, name), getattr(made.tuning, name)
        if name in pins or rung == 0:
            assert after == before
        if after != before:
            assert before is None or before < 0 or after < before
    assert made.rung == (rung if made.tuning != own else 0)
    assert experienced(made, known).tuning == made.tuning
    assert EnginePlan.model_validate_json(made.model_dump_json()) == made


def test_another_version_model_or_machine_is_another_key() -> None:
    others = [
        key_of(PLAN.model_copy(update={"engine_version": "0.33.0"}), BOX),
        key_of(PLAN, box("RTX 3090")),
        key_of(PLAN.model_copy(update={"gpus": ()}), BOX),
        key_of(PLAN.model_copy(update={"model": PLAN.model.model_copy(update={"id": "x"})}), BOX),
        key_of(planned("mistral-7b-instruct-v0.3", BOX, context=2048), BOX),
        key_of(planned("mistral-7b-instruct-v0.3", BOX, quantization="4bit"), BOX),
    ]
    assert len({KEY.name, *(key.name for key in others)}) == 7
    assert key_of(PLAN, BOX) == KEY


def test_an_engine_is_watched_and_only_what_held_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    told: list[Experience] = []

    def learn(experience: Experience) -> None:
        told.append(experience)
        store.learn(experience)

    learner = Learner(learn, KEY, clock=lambda: DAY)
    learner.ready(PLAN, 9.0)
    learner.sample(PLAN, {"gpu:0": 22 * GIB})
    smaller = relaxed(PLAN, 1)  # it did not hold
    learner.ready(smaller, 8.0)
    learner.sample(smaller, {"gpu:0": 17 * GIB})
    learner.sample(smaller, {"gpu:0": 16 * GIB})
    learner.speed(smaller, 50.0)
    assert told == []
    learner.held(smaller)
    first = seen(smaller, memory={"gpu:0": 17 * GIB}, load_seconds=8.0, tokens_per_second=50.0)
    assert told == [first]
    learner.sample(smaller, {"gpu:0": 17 * GIB + 1})  # no news
    learner.speed(smaller, 51.0)
    assert told == [first]
    learner.sample(smaller, {"gpu:0": 19 * GIB})
    assert told[1].memory == {"gpu:0": 19 * GIB}
    assert remembered(tmp_path) == {KEY.name: told[1]}
    store.close()

    again = Store(tmp_path / "state.db")  # the next supervisor, with the same plan
    next_one = Learner(again.learn, KEY, again.learned()[0], clock=lambda: DAY + 60)
    plan = experienced(PLAN, again.learned()[0])
    next_one.sample(plan, {"gpu:0": 15 * GIB})
    next_one.held(plan)
    assert again.learned() == (told[1],)
    assert again.unlearn("another") == 0
    assert again.unlearn(KEY.model) == 1
    assert remembered(tmp_path) == {}
    again.close()


def test_what_is_remembered_is_bounded_and_damage_is_left_out(tmp_path: Path) -> None:
    assert remembered(tmp_path) == {}
    known = {str(at): seen(PLAN).model_copy(update={"at": float(at)}) for at in range(503)}
    assert calibration.too_many(known) == ["0", "1", "2"]
    good = calibration.row_of(seen(PLAN))
    assert list(calibration.from_rows([good, ("x", 1.0, "{}", "no"), (*good[:2], 7, good[3])])) == [
        KEY.name
    ]
    (tmp_path / "state.good.db").write_bytes(b"no database" * 900)
    assert remembered(tmp_path) == {}


def test_it_can_be_listed_and_forgotten_without_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear(data_dir=tmp_path / "none")
    store = Store(tmp_path / "state.db")
    store.learn(seen(PLAN, memory={"gpu:0": 22 * GIB}, load_seconds=9.0))
    store.close()
    list_learned(data_dir=tmp_path)
    list_learned(data_dir=tmp_path, as_json=True)
    clear("another", data_dir=tmp_path)
    clear(data_dir=tmp_path)
    list_learned(data_dir=tmp_path)
    first, head, row, listed, *rest = capsys.readouterr().out.splitlines()
    assert (first, head.split()[0]) == ("forgotten: 0", "MODEL")
    assert "gpu:0 22.0 GiB  9.0 s" in row
    assert Experience.model_validate(json.loads(listed)[0]).key == KEY
    assert rest[:2] == ["forgotten: 0", "forgotten: 1"]
    assert rest[2].startswith("nothing was learned yet")
