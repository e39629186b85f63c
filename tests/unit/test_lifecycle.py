"""The lifecycle table: sentences, an exhaustive walk, and random histories."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from engine_launchers.base import CrashCause, ExitResult
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.lifecycle import State as S

POLICY = lc.Policy(
    restart_limit=2,
    restart_window_s=100,
    stable_s=50,
    half_open_s=300,
    request_limit=2,
    port_limit=1,
)
CAUSES = (CrashCause.KILLED, CrashCause.HOST_OOM, CrashCause.BAD_FLAGS)  # one of each kind
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


def test_a_start_launches() -> None:
    now, actions = lc.step(lc.Lifecycle(), lc.Start(), POLICY, 0.0)
    assert now.state is S.STARTING
    assert actions[0] == lc.Launch(1)


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


def test_requests_that_break_in_a_row_have_a_canary_sent_whose_failure_ends_it() -> None:
    now, asked = READY, []
    for number in range(1, 3 * POLICY.request_limit):
        now, actions = lc.step(now, lc.RequestFailed(1, "broke"), POLICY, 0.0)
        asked += [number] if lc.Canary(1) in actions else []
        now = drive(lc.ProbeOk(1), now=now)  # its probes are another streak
    assert asked == [POLICY.request_limit, 2 * POLICY.request_limit]
    almost = drive(*[lc.RequestFailed(1, "x")] * (POLICY.request_limit - 1), now=READY)
    assert drive(lc.Answered(1), now=almost).request_fails == 0
    now = drive(lc.Stalled(1, "no token for a canary", "requests"), now=almost)
    assert (now.state, now.after, now.stall) == (S.STOPPING, "retry", "requests")
    now = drive(exited(1), now=now)
    assert (now.state, now.cause, now.stall) == (S.STARTING, CrashCause.UNRESPONSIVE, None)


def test_what_hangs_is_ended_with_a_short_grace_in_every_phase_of_its_life() -> None:
    hung = lc.Stalled(1, "nothing moves for 45 s")
    for before, cause, kind, after in (
        (drive(lc.Start()), CrashCause.START_STALLED, "start", "retry"),
        (READY, CrashCause.UNRESPONSIVE, "work", "retry"),
        (drive(lc.Stop(30), now=READY), None, "work", "stay"),
        (drive(lc.Stop(30, "restart"), now=READY), None, "work", "restart"),
        (drive(lc.Sleep(30, 1), now=READY), None, "work", "stay"),
    ):
        now, actions = lc.step(before, hung, POLICY, 0.0)
        assert (now.state, now.cause, now.stall, now.after) == (S.STOPPING, cause, kind, after)
        assert actions[0] == lc.Kill(1, POLICY.stuck_grace_s)
    why = drive(hung, exited(1), now=drive(lc.Start())).why
    assert why == "restart after start_stalled"


def test_a_sleep_waits_for_requests_then_for_the_engine_and_a_start_wakes_it() -> None:
    now, actions = lc.step(READY, lc.Sleep(30, 2), POLICY, 0.0)
    assert (now.state, actions[0]) == (S.DRAINING, lc.Arm(1, "drain", 30))
    now, actions = lc.step(now, lc.Idle(1), POLICY, 0.0)
    assert (now.state, actions) == (S.DRAINING, (lc.PutToSleep(1, 2),))
    assert lc.step(now, lc.Idle(1), POLICY, 0.0) == (now, ())
    asleep = drive(lc.Slept(1), now=now)
    assert (asleep.state, asleep.level) == (S.SLEEPING, 2)
    now, actions = lc.step(asleep, lc.Start(), POLICY, 0.0)
    assert (now.state, now.generation, actions[0]) == (S.STARTING, 1, lc.WakeUp(1, 2))
    assert drive(lc.ProbeOk(1), now=now) == now  # of before it was awake
    now, actions = lc.step(now, lc.Woken(1), POLICY, 0.0)
    assert lc.Probe(1) in actions
    assert drive(lc.ProbeOk(1), now=now).state is S.READY


def test_a_start_ends_a_sleep_that_has_not_begun_and_follows_one_that_has() -> None:
    going = drive(lc.Sleep(30, 1), now=READY)
    assert drive(lc.Start(), now=going).state is S.SUSPECT
    asked = drive(lc.Idle(1), lc.Start(), now=going)
    assert asked.state is S.DRAINING
    assert drive(lc.Slept(1), now=asked).asking == "wake"
    assert drive(lc.SleepFailed(1, "404"), exited(1), now=asked).state is S.STARTING


def test_what_cannot_sleep_is_stopped_and_what_cannot_wake_has_crashed() -> None:
    asked = drive(lc.Sleep(0, 1), lc.Deadline(1, "drain"), now=READY)
    now = drive(lc.SleepFailed(1, "HTTP 404"), exited(1), now=asked)
    assert (now.state, now.why) == (S.STOPPED, "could not sleep: HTTP 404")
    waking = drive(lc.Slept(1), lc.Start(), now=asked)
    now = drive(lc.WakeFailed(1, "HTTP 500"), now=waking)
    assert (now.state, now.after, now.stall) == (S.STOPPING, "retry", "wake")
    now = drive(exited(1), now=now)
    assert (now.state, now.generation, len(now.failures)) == (S.STARTING, 2, 1)


def test_one_that_ends_in_its_sleep_is_not_started_until_it_is_wanted() -> None:
    asleep = drive(lc.Sleep(0, 1), lc.Idle(1), lc.Slept(1), now=READY)
    now = drive(exited(1), now=asleep)
    assert now.state is S.STOPPED
    assert drive(lc.Start(), now=now).state is S.STARTING
    mute = drive(*[lc.ProbeFailed(1, "mute")] * 3, exited(1), now=asleep)
    assert mute.state is S.STOPPED


def test_a_half_open_retry_has_one_try() -> None:
    failed = replace(READY, state=S.FAILED, cause=CrashCause.UNKNOWN, up_since=None)
    trial = drive(lc.Deadline(1, "half_open"), now=failed)
    assert drive(exited(2), now=trial).state is S.FAILED
    assert drive(lc.ProbeOk(2), exited(2), now=trial).state is S.FAILED
    proved = drive(exited(2), now=drive(lc.ProbeOk(2), now=trial), clock=POLICY.stable_s)
    assert (proved.state, proved.trial) == (S.STARTING, False)


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
    for generation in range(1, 4):
        now = drive(exited(generation), now=now)
        if now.state is S.BACKOFF:
            now = drive(lc.Deadline(generation, "backoff"), now=now)
        if now.state is S.STARTING:
            now = drive(lc.ProbeOk(generation + 1), now=now)
    assert now.state is S.FAILED
    assert "2 restarts in 100 s are spent" in now.why


def test_time_in_service_forgives_earlier_crashes() -> None:
    crashed = replace(READY, failures=(1.0, 2.0), up_since=10.0)
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


def test_one_that_sleeps_is_adopted_in_its_sleep() -> None:
    now = drive(lc.Adopted(7, 2), now=lc.Lifecycle(generation=7))
    assert (now.state, now.level) == (S.SLEEPING, 2)
    assert drive(lc.Start(), now=now).asking == "wake"


def test_events_of_an_older_generation_are_dropped() -> None:
    second = drive(lc.Stop(0, "restart"), exited(1), lc.ProbeOk(2), now=READY)
    for event in (lc.ProbeFailed(1, ""), exited(1), lc.Idle(1), lc.Deadline(1, "drain")):
        assert drive(event, now=second) == second


def every_event(now: lc.Lifecycle) -> list[lc.Event]:
    g = now.generation
    return [
        lc.Start(),
        lc.Adopted(g),
        lc.Adopted(g, 1),
        lc.ProbeOk(g),
        lc.ProbeFailed(g, "p"),
        lc.PortTaken(g, "t"),
        lc.RequestFailed(g, "r"),
        lc.Answered(g),
        lc.Stalled(g, "s"),
        lc.Stalled(g, "s", "requests"),
        lc.Idle(g),
        *(lc.Deadline(g, timer) for timer in get_args(lc.Timer)),
        lc.Replanned(g, True, "smaller"),
        lc.Replanned(g, False, "none"),
        *(lc.Exited(g, KILLED, cause) for cause in CAUSES),
        lc.Stop(0),
        lc.Stop(30),
        lc.Stop(0, "restart"),
        lc.Stop(30, "restart"),
        lc.Sleep(0, 1),
        lc.Sleep(30, 1),
        lc.Slept(g),
        lc.SleepFailed(g, "sf"),
        lc.Woken(g),
        lc.WakeFailed(g, "wf"),
    ]


WALK = replace(POLICY, restart_limit=1, probe_limit=2)  # the fewer counts, the fewer records


def shape(now: lc.Lifecycle) -> lc.Lifecycle:
    """Records that behave alike: numbers that only grow are folded."""
    charged = now.failures[-(WALK.restart_limit + 1) :]
    return replace(now, generation=1, failures=charged, why="")


def test_every_reachable_record_moves_only_along_the_table_and_can_be_stopped() -> None:
    seen = {shape(lc.Lifecycle())}
    queue = deque(seen)
    used: set[tuple[S, S]] = set()
    while queue:
        now = queue.popleft()
        for event in every_event(now):
            new, actions = lc.step(now, event, WALK, 0.0)
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
        stopped = drive(lc.Stop(0), exited(1), now=now)
        assert stopped.state is S.STOPPED, now
    assert used == lc.TRANSITIONS  # no dead row in the table
    assert len(seen) > 100


class Life(RuleBasedStateMachine):
    """One engine, and everybody who posts events about it, old ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.clock = lc.Lifecycle(), 0.0
        self.launched = self.asked = 0

    @rule(pick=st.integers(0, 200), pause=st.integers(0, 30), old=st.booleans())
    def event(self, pick: int, pause: int, old: bool) -> None:
        self.clock += pause
        before = self.now
        age = 1 if old and pick % 4 == 0 else 0
        events = every_event(replace(before, generation=before.generation - age))
        self.apply(events[pick % len(events)], stale=bool(age))

    @rule(pause=st.integers(0, 30))
    def what_it_waits_for(self, pause: int) -> None:
        """So that long histories get beyond their first steps."""
        self.clock += pause
        g = self.now.generation
        self.apply(WAITS[self.now.state](g, self.now), stale=False)

    def apply(self, event: lc.Event, stale: bool) -> None:
        before, fails = self.now, self.now.request_fails
        self.now, actions = lc.step(before, event, POLICY, self.clock)
        now, order = self.now, isinstance(event, lc.Start | lc.Stop | lc.Sleep | lc.Adopted)
        at = before.state
        for moved in (a for a in actions if isinstance(a, lc.Announce)):
            assert (moved.old, moved.new) in lc.TRANSITIONS
            assert moved.old is at
            at = moved.new
        assert at is now.state  # nothing moves unannounced
        if stale and not order:
            assert (now, actions) == (before, ())
        launches = [a for a in actions if isinstance(a, lc.Launch)]
        assert now.generation - before.generation == len(launches) <= 1
        if before.state is S.FAILED and now.state is not S.FAILED:
            assert order or isinstance(event, lc.Deadline)
        if now.state is S.STARTING and isinstance(event, lc.Exited):
            recent = [t for t in now.failures if self.clock - t < POLICY.restart_window_s]
            assert len(recent) <= POLICY.restart_limit
        if isinstance(event, lc.RequestFailed) and not stale:
            assert now.request_fails in {fails, fails + 1, 0}

    @invariant()
    def is_one_of_those_that_make_sense(self) -> None:
        now = self.now
        assert (now.asking == "sleep") <= (now.state is S.DRAINING)
        assert (now.asking == "wake") <= (now.state is S.STARTING)
        assert (now.after in {"sleep", "wake"}) <= (now.state is S.DRAINING)
        assert (now.state is S.SLEEPING) <= (now.level is not None)
        assert now.request_fails < POLICY.request_limit
        assert now.probe_fails <= POLICY.probe_limit
        assert not (now.waiting_plan or now.waiting_time) or now.state is S.BACKOFF


def waited_for_while_draining(g: int, now: lc.Lifecycle) -> lc.Event:
    return lc.Slept(g) if now.asking else lc.Idle(g)


WAITS: dict[S, Callable[[int, lc.Lifecycle], lc.Event]] = {
    S.STOPPED: lambda g, now: lc.Start(),
    S.STARTING: lambda g, now: lc.Woken(g) if now.asking else lc.ProbeOk(g),
    S.READY: lambda g, now: lc.Sleep(30, 1),
    S.SUSPECT: lambda g, now: lc.ProbeOk(g),
    S.DRAINING: waited_for_while_draining,
    S.STOPPING: lambda g, now: exited(g),
    S.SLEEPING: lambda g, now: lc.Start(),
    S.BACKOFF: lambda g, now: lc.Deadline(g, "backoff"),
    S.FAILED: lambda g, now: lc.Deadline(g, "half_open"),
}


def test_10_000_steps_never_leave_the_table() -> None:
    run_state_machine_as_test(
        Life, settings=settings(max_examples=100, stateful_step_count=100, deadline=None)
    )


def test_what_has_not_become_ready_gets_a_short_grace_and_never_a_longer_one() -> None:
    starting = drive(lc.Start())
    stalled = lc.Stalled(1, "nothing moves")
    for event in (lc.Stop(30), lc.Stop(0, "restart"), stalled):
        now, actions = lc.step(starting, event, POLICY, 5.0)
        assert (now.state, actions[0]) == (S.STOPPING, lc.Kill(1, POLICY.stuck_grace_s))
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
