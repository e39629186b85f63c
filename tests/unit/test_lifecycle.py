"""The lifecycle table: sentences, an exhaustive walk, and random histories."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_launchers.base import CrashCause, ExitResult
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.lifecycle import State as S

POLICY = lc.Policy(
    port_limit=1, restart_limit=3, restart_window_s=100, stable_s=50, half_open_s=300
)
KILLED = ExitResult(signal=9)


def drive(*events: lc.Event, now: lc.Lifecycle | None = None, clock: float = 0.0) -> lc.Lifecycle:
    record = now or lc.Lifecycle()
    for event in events:
        record, _ = lc.step(record, event, POLICY, clock)
    return record


def exited(
    generation: int, cause: CrashCause = CrashCause.KILLED, exit: ExitResult = KILLED
) -> lc.Exited:
    return lc.Exited(generation, exit, cause)


READY = drive(lc.Start(), lc.ProbeOk(1))


def test_a_start_launches_and_arms_the_start_deadline() -> None:
    now, actions = lc.step(lc.Lifecycle(), lc.Start(), POLICY, 0.0)
    assert now.state is S.STARTING
    assert actions[:2] == (lc.Launch(1), lc.Arm(1, "start", POLICY.start_timeout_s))


def test_the_first_good_probe_makes_it_ready() -> None:
    assert READY.state is S.READY


def test_one_bad_probe_makes_it_suspect_and_it_still_serves() -> None:
    now = drive(lc.ProbeFailed(1, "x"), now=READY)
    assert now.state is S.SUSPECT
    assert now.state in lc.SERVING


def test_a_failed_request_asks_for_a_probe_at_once_and_never_kills() -> None:
    now = READY
    for _ in range(20):
        now, actions = lc.step(now, lc.RequestFailed(1, "broke"), POLICY, 0.0)
        assert lc.Probe(1) in actions
    assert now.state is S.SUSPECT


def test_a_good_probe_after_trouble_makes_it_ready_again() -> None:
    assert drive(lc.ProbeFailed(1, "x"), lc.ProbeOk(1), now=READY).state is S.READY


def test_three_bad_probes_in_a_row_kill_it_and_it_comes_back_as_unresponsive() -> None:
    now = drive(*[lc.ProbeFailed(1, "mute")] * 3, now=READY)
    assert (now.state, now.after) == (S.STOPPING, "retry")
    now = drive(exited(1, CrashCause.KILLED), now=now)
    assert now.state is S.STARTING
    assert now.cause is CrashCause.UNRESPONSIVE


def test_the_first_crash_restarts_without_a_pause() -> None:
    now, actions = lc.step(READY, exited(1), POLICY, 10.0)
    assert now.state is S.STARTING
    assert lc.Launch(2) in actions
    assert [a.new for a in actions if isinstance(a, lc.Announce)] == [S.BACKOFF, S.STARTING]


def test_an_exit_with_code_0_that_nobody_asked_for_is_a_crash() -> None:
    now = drive(exited(1, CrashCause.EXIT_UNREQUESTED, ExitResult(code=0)), now=READY)
    assert now.failures


def test_the_pause_doubles_and_is_bounded() -> None:
    policy = lc.Policy(backoff_max_s=60)
    assert [policy.delay(n, 0.5) for n in range(1, 10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert policy.delay(2, 0.0) == 0.75
    assert policy.delay(2, 1.0) == 1.25


def test_a_spent_budget_is_a_failure_that_says_so() -> None:
    now = READY
    for generation in range(1, 5):
        now = drive(exited(generation), now=now)
        if now.state is S.BACKOFF:
            now = drive(lc.Deadline(generation, "backoff"), now=now)
        if now.state is S.STARTING:
            now = drive(lc.ProbeOk(generation + 1), now=now)
    assert now.state is S.FAILED
    assert "3 restarts in 100 s are spent" in now.why


def test_time_in_service_forgives_earlier_crashes() -> None:
    crashed = replace(READY, failures=(1.0, 2.0, 3.0), up_since=10.0)
    assert drive(exited(1), now=crashed, clock=61.0).failures == (61.0,)


@pytest.mark.parametrize("cause", [c for c in CrashCause if not c.recoverable])
def test_what_would_repeat_itself_fails_at_once_and_for_ever(cause: CrashCause) -> None:
    now, actions = lc.step(READY, exited(1, cause), POLICY, 0.0)
    assert now.state is S.FAILED
    assert not [a for a in actions if isinstance(a, lc.Arm)]


def test_out_of_memory_waits_for_time_and_for_a_smaller_plan() -> None:
    now, actions = lc.step(READY, exited(1, CrashCause.HOST_OOM), POLICY, 0.0)
    assert now.state is S.BACKOFF
    assert lc.Replan(1, CrashCause.HOST_OOM) in actions
    assert drive(lc.Deadline(1, "backoff"), now=now).state is S.BACKOFF
    both = drive(lc.Deadline(1, "backoff"), lc.Replanned(1, True, "smaller"), now=now)
    assert both.state is S.STARTING
    none = drive(lc.Replanned(1, False, "no smaller plan"), now=now)
    assert (none.state, none.why) == (S.FAILED, "no smaller plan")


def test_a_failed_one_is_tried_again_only_by_the_half_open_timer_or_a_person() -> None:
    failed = replace(READY, state=S.FAILED, cause=CrashCause.UNKNOWN)
    assert drive(lc.Deadline(1, "half_open"), now=failed).state is S.STARTING
    assert drive(lc.Start(), now=failed).state is S.STARTING
    for event in (lc.ProbeOk(1), lc.Deadline(1, "backoff"), exited(1), lc.Idle(1)):
        assert drive(event, now=failed) == failed


def test_a_stop_with_drain_waits_for_the_last_request() -> None:
    now, actions = lc.step(READY, lc.Stop(30), POLICY, 0.0)
    assert now.state is S.DRAINING
    assert actions[0] == lc.Arm(1, "drain", 30)
    now, actions = lc.step(now, lc.Idle(1), POLICY, 0.0)
    assert (now.state, actions[0]) == (S.STOPPING, lc.Kill(1, POLICY.stop_grace_s))
    assert drive(exited(1), now=now).state is S.STOPPED


def test_the_drain_deadline_ends_waiting() -> None:
    now = drive(lc.Stop(30), lc.Deadline(1, "drain"), now=READY)
    assert now.state is S.STOPPING


def test_a_restart_is_never_charged_and_forgives() -> None:
    crashed = replace(READY, failures=(1.0, 2.0))
    now = drive(lc.Stop(0, "restart"), exited(1), now=crashed)
    assert (now.state, now.generation, now.failures) == (S.STARTING, 2, ())


def test_a_start_during_a_stop_becomes_a_restart() -> None:
    now = drive(lc.Stop(0), lc.Start(), exited(1), now=READY)
    assert now.state is S.STARTING


def test_a_second_stop_without_drain_cuts_draining_short() -> None:
    assert drive(lc.Stop(30), lc.Stop(0), now=READY).state is S.STOPPING


def test_an_adopted_process_serves_before_its_first_probe() -> None:
    now, actions = lc.step(lc.Lifecycle(generation=7), lc.Adopted(7), POLICY, 0.0)
    assert now.state in lc.SERVING
    assert lc.Probe(7) in actions
    assert drive(lc.ProbeOk(7), now=now).state is S.READY


def test_events_of_an_older_generation_are_dropped() -> None:
    second = drive(lc.Stop(0, "restart"), exited(1), lc.ProbeOk(2), now=READY)
    for event in (lc.ProbeFailed(1, ""), exited(1), lc.Idle(1), lc.Deadline(1, "drain")):
        assert drive(event, now=second) == second


def every_event(now: lc.Lifecycle) -> list[lc.Event]:
    g = now.generation
    return [
        lc.Start(),
        lc.Adopted(g),
        lc.ProbeOk(g),
        lc.ProbeFailed(g, "p"),
        lc.PortTaken(g, "t"),
        lc.RequestFailed(g, "r"),
        lc.Idle(g),
        *(lc.Deadline(g, timer) for timer in ("start", "drain", "backoff", "half_open")),
        lc.Replanned(g, True, "smaller"),
        lc.Replanned(g, False, "none"),
        *(lc.Exited(g, KILLED, cause) for cause in CrashCause),
        lc.Stop(0),
        lc.Stop(30),
        lc.Stop(0, "restart"),
        lc.Stop(30, "restart"),
    ]


def shape(now: lc.Lifecycle) -> lc.Lifecycle:
    """Records that behave alike: numbers that only grow are folded."""
    charged = now.failures[-(POLICY.restart_limit + 1) :]
    return replace(now, generation=1, failures=charged, why="")


def test_every_reachable_record_moves_only_along_the_table_and_can_be_stopped() -> None:
    seen = {shape(lc.Lifecycle())}
    queue = deque(seen)
    used: set[tuple[S, S]] = set()
    while queue:
        now = queue.popleft()
        for event in every_event(now):
            new, actions = lc.step(now, event, POLICY, 0.0)
            for moved in (a for a in actions if isinstance(a, lc.Announce)):
                used.add((moved.old, moved.new))
                assert (moved.old, moved.new) in lc.TRANSITIONS, (now, event)
            launches = [a for a in actions if isinstance(a, lc.Launch)]
            assert bool(launches) == (new.generation > now.generation)
            if new.state in {S.STOPPED, S.FAILED, S.BACKOFF}:
                assert not any(isinstance(a, lc.Kill) for a in actions)
            if shape(new) not in seen:
                seen.add(shape(new))
                queue.append(shape(new))
        stopped = drive(lc.Stop(0), lc.Exited(1, KILLED, CrashCause.KILLED), now=now)
        assert stopped.state is S.STOPPED, now
    assert used == lc.TRANSITIONS  # no dead row in the table
    assert len(seen) > 100


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 30), st.booleans()), max_size=60))
def test_random_histories_never_leave_the_table_or_overspend(
    history: list[tuple[int, float, bool]],
) -> None:
    now, clock = lc.Lifecycle(), 0.0
    for pick, pause, old in history:
        clock += pause
        events = every_event(replace(now, generation=now.generation - 1) if old else now)
        event = events[pick % len(events)]
        before = now
        now, actions = lc.step(now, event, POLICY, clock)
        for moved in (a for a in actions if isinstance(a, lc.Announce)):
            assert (moved.old, moved.new) in lc.TRANSITIONS
        if before.state is S.FAILED and now.state is not S.FAILED:
            assert isinstance(event, lc.Start | lc.Stop | lc.Deadline)
        recent = [t for t in now.failures if clock - t < POLICY.restart_window_s]
        if now.state is S.STARTING and isinstance(event, lc.Exited):
            assert len(recent) <= POLICY.restart_limit


def test_what_has_not_become_ready_gets_a_short_grace_and_never_a_longer_one() -> None:
    starting = drive(lc.Start())
    stalled = lc.Deadline(1, "start")
    for event in (lc.Stop(30), lc.Stop(0, "restart"), stalled):
        now, actions = lc.step(starting, event, POLICY, 5.0)
        assert (now.state, actions[0]) == (S.STOPPING, lc.Kill(1, POLICY.starting_grace_s))
        _, actions = lc.step(starting, event, replace(POLICY, stop_grace_s=0.5), 5.0)
        assert actions[0] == lc.Kill(1, 0.5)
    _, actions = lc.step(READY, lc.Stop(0), POLICY, 5.0)
    assert actions[0] == lc.Kill(1, POLICY.stop_grace_s)


def test_a_port_that_a_stranger_took_is_forgiven_so_many_times_in_a_row() -> None:
    taken = exited(1, CrashCause.PORT_TAKEN, ExitResult(code=3))
    first = drive(lc.Start(), taken)
    assert (first.state, first.generation, first.failures, first.cause) == (S.STARTING, 2, (), None)
    second = drive(replace(taken, generation=2), now=first)
    assert len(second.failures) == 1
    found = drive(lc.PortTaken(1, "a stranger answers"), now=drive(lc.Start()))
    assert (found.state, found.after) == (S.STOPPING, "retry")
    again = drive(lc.Exited(1, KILLED, CrashCause.KILLED), now=found)
    assert (again.state, again.failures) == (S.STARTING, ())
    ready = drive(lc.ProbeOk(2), now=first)
    assert ready.ports_taken == 0
