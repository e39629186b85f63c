"""Signs of life: silence, the progress of work, the progress of a start, phases, exposition."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_launchers import ENGINES, load_launcher
from engine_launchers.base import EngineName
from engine_launchers.watch import PhaseRule
from orchestrator.observability.control_metrics import STALLS
from orchestrator.supervision.events import StallKind
from orchestrator.supervision.exposition import values
from orchestrator.supervision.loading import Evidence, Load, Phase, phase
from orchestrator.supervision.progress import Limits, Signs, Verdict, Watched, Work, judge
from tests.harness import ROOT

LIMITS = Limits(hang_s=45, prefill_s=180)
LOOK = LIMITS.look_s
STALL = 300.0
STARTS = ROOT / "tests" / "fixtures" / "starts"


def look(before: Watched, seconds: float = LOOK, **signs: object) -> tuple[Watched, Verdict]:
    known = {"work": Work(1, 0), "counters": (0.0,), "cpu_s": 0.0, **signs}
    return judge(before, Signs(**known), seconds, LIMITS)  # type: ignore[arg-type]


def until_stalled(share: float = 0.0, **each: object) -> float:
    """Seconds of work until the verdict, where every look says the same but for processor time."""
    watched, spent, cpu = Watched(), 0.0, 0.0
    while spent < 10_000:
        watched, verdict = look(watched, LOOK, cpu_s=cpu, **each)
        if verdict is Verdict.STALLED:
            return spent
        spent, cpu = spent + LOOK, cpu + share * LOOK
    return spent


def test_a_frozen_engine_is_found_in_time_and_doubted_before() -> None:
    assert 0.7 * 45 < until_stalled() <= 45 - LOOK
    watched, verdicts = Watched(), list[Verdict]()
    for _ in range(12):
        watched, verdict = look(watched)
        verdicts.append(verdict)
    assert verdicts == sorted(verdicts, key=[Verdict.MOVING, Verdict.DOUBT, Verdict.STALLED].index)
    assert set(verdicts) == {Verdict.MOVING, Verdict.DOUBT, Verdict.STALLED}


def test_processor_time_is_believed_as_long_as_the_longest_prefill() -> None:
    assert until_stalled(share=1.0) == pytest.approx(180 + 45, abs=3 * LOOK)
    assert until_stalled(share=0.01) <= 45  # what answers our questions does not compute


def test_unreadable_counters_are_no_sign_and_no_work_is_no_stall() -> None:
    assert until_stalled(counters=None) <= 45
    watched, verdict = look(Watched())
    for _ in range(100):
        watched, verdict = look(watched, work=Work(0, 5))
    assert (verdict, watched) == (Verdict.IDLE, Watched())


def test_a_canary_ends_the_doubt() -> None:
    watched, verdict = Watched(), Verdict.MOVING
    while verdict is not Verdict.DOUBT:
        watched, verdict = look(watched)
    assert look(watched.sung())[1] is Verdict.MOVING


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watched, _ = look(Watched())
    watched, verdict = look(watched, seconds=3600)
    assert verdict is Verdict.MOVING
    assert watched.silence.quiet_s == pytest.approx(2 * LOOK)


@given(st.lists(st.sampled_from(["relayed", "counters", "nothing"]), max_size=60))
def test_what_moves_often_enough_is_never_stalled(signs: list[str]) -> None:
    watched, relayed, counter, quiet = Watched(), 0, 0.0, 0
    for sign in signs:
        relayed += sign == "relayed"
        counter += sign == "counters"
        first = watched.signs is None
        watched, verdict = look(watched, work=Work(2, relayed), counters=(counter, 1.0))
        quiet = 0 if sign != "nothing" or first else quiet + 1
        assert (verdict is Verdict.STALLED) == (quiet * LOOK >= 0.72 * 45)
        assert watched.silence.quiet_s == pytest.approx(quiet * LOOK)


# --- starts -----------------------------------------------------------------------------------

MIB = 1 << 20


def start(**growth: float) -> float:
    """Seconds until a start is given up of which each second adds `growth`; 10 000 is never."""
    load, spent = Load(), 0
    while spent < 10_000 and load.stalled(STALL) is None:
        spent += 1
        seen = Evidence(
            logged=int(growth.get("logged", 0) * spent),
            read=int(growth.get("read", 0) * spent),
            memory=int(growth.get("memory", 0) * spent),
            cpu_s=growth.get("cpu_s", 0) * spent,
        )
        load = load.after(1, seen, None, STALL)
    return spent


def test_a_start_goes_on_as_long_as_something_grows() -> None:
    for sign in ({"logged": 1}, {"read": MIB}, {"memory": MIB}, {"read": MIB / 100}):
        assert start(**sign) == 10_000, sign
    assert start() == STALL
    assert start(read=100, memory=100, cpu_s=0.01) == STALL  # what our own questions cost
    assert start(cpu_s=1) == pytest.approx(5 * STALL, abs=2)


def test_a_stall_says_where_it_was() -> None:
    load = Load().after(1, Evidence(logged=1), Phase("loading weights", 40), STALL)
    load = load.after(1, Evidence(logged=2), Phase("starting", 1), STALL)
    assert load.phase == Phase("loading weights", 40)  # never back
    why = load.after(STALL, Evidence(logged=2), None, STALL).stalled(STALL)
    assert why == "not ready, and nothing logged, read or loaded for 300.0 s at loading weights"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_recorded_start_goes_through_its_phases_in_order(engine: EngineName) -> None:
    rules = load_launcher(engine).watch.phases
    lines = (STARTS / f"{engine}.log").read_text().splitlines()
    load, steps = Load(), list[Phase]()
    for line in lines:
        load = load.after(1, Evidence(), phase([line], rules), STALL)
        steps += [load.phase] if load.phase and load.phase not in steps else []
    assert len({each.name for each in steps}) >= 4
    assert [each.percent for each in steps] == sorted(each.percent for each in steps)
    assert steps[-1].percent >= 98
    assert phase(lines, rules) == steps[-1]
    assert phase(["nothing of that"], rules) is None


def test_a_step_tells_how_much_of_it_is_done() -> None:
    rules = load_launcher("vllm").watch.phases
    line = "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:03<00:03]"
    assert phase(["x", line, "y"], rules) == Phase("loading weights", 45.0)
    odd = PhaseRule(pattern=r"(?P<percent>\d+)", name="n", percent=10, until=20)
    assert phase(["900"], [odd]) == Phase("n", 20.0)


# --- counters ---------------------------------------------------------------------------------


def test_values_of_series_are_summed_over_their_labels() -> None:
    text = (
        "# HELP a_total Words.\n# TYPE a_total counter\n"
        'a_total{x="1",y="} 7"} 2\na_total{x="2"} 3.5 1700000000\nb_total 4\nb_total_created 9\n'
        "broken\nc_total{ 1\nb_total\n"
    )
    assert values(text, ["a_total", "b_total", "gone"]) == (5.5, 4.0, 0.0)


@given(st.text(max_size=200))
def test_any_text_has_values(text: str) -> None:
    assert len(values("a " + text, ["a", "b"])) == 2


def test_every_kind_of_stall_has_its_series() -> None:
    assert set(get_args(StallKind)) == set(STALLS)
