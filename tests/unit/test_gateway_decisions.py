"""What the gateway decides about failures: whom to leave out, what to repeat, what to refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_launchers.base import CrashCause
from orchestrator.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    QueueFull,
    UpstreamBroken,
    UpstreamInvalid,
    UpstreamTimeout,
)
from orchestrator.gateway.crowd import Room, bound, room
from orchestrator.gateway.outliers import Key, OutlierPolicy, Outliers
from orchestrator.gateway.quarantine import Quarantine, can_be_a_requests_fault, fingerprint
from orchestrator.gateway.retries import (
    RetryBudget,
    counts_as_failure,
    engines_fault,
    may_succeed_elsewhere,
)

A, B, C = ("m-0", 1), ("m-1", 1), ("m-2", 1)


def fail(outliers: Outliers, key: Key, times: int, now: float, among: set[Key]) -> float | None:
    """What the last of some failures in a row led to."""
    return [outliers.failed(key, among, now) for _ in range(times)][-1]


def test_five_failures_in_a_row_eject_and_a_success_starts_the_count_again() -> None:
    outliers, pair = Outliers(), {A, B}
    assert fail(outliers, A, 4, 0, pair) is None
    outliers.succeeded(A)
    assert fail(outliers, A, 4, 0, pair) is None
    assert fail(outliers, A, 1, 0, pair) == 30
    assert (outliers.usable(pair, 29.9), outliers.out(29.9)) == ({B}, 1)
    assert outliers.usable(pair, 30.1) == pair


def test_who_comes_back_is_on_probation_and_stays_away_longer_each_time() -> None:
    outliers, now = Outliers(), 0.0
    assert fail(outliers, A, 5, now, {A, B}) == 30
    for seconds in (60, 90, 120):
        now += seconds  # the last time is over
        assert fail(outliers, A, 1, now, {A, B}) == seconds
    now += 120 + OutlierPolicy().max_s + 1  # after a long quiet the count starts again
    assert fail(outliers, A, 1, now, {A, B}) == 30


def test_the_only_replica_is_never_left_out_and_never_more_than_half() -> None:
    outliers = Outliers()
    assert fail(outliers, A, 50, 0, {A}) is None
    assert outliers.usable({A}, 0) == {A}
    three = {A, B, C}
    assert fail(outliers, B, 5, 0, three) == 30
    assert fail(outliers, C, 5, 0, three) is None
    assert outliers.out(0) == 1


def test_when_none_is_good_all_are_tried_until_one_is() -> None:
    outliers, pair = Outliers(), {A, B}
    fail(outliers, A, 5, 0, pair)
    assert outliers.usable(pair, 1) == {B}
    fail(outliers, B, 5, 1, pair)
    assert outliers.usable(pair, 1) == pair
    outliers.succeeded(A)
    assert outliers.usable(pair, 1) == pair
    fail(outliers, A, 5, 1, pair)
    outliers.succeeded(B)
    assert outliers.usable(pair, 1) == {B}


def test_a_new_launch_has_a_clean_record() -> None:
    outliers = Outliers()
    fail(outliers, A, 5, 0, {A, B})
    outliers.keep({B, ("m-0", 2)})
    assert outliers.usable({("m-0", 2), B}, 0) == {("m-0", 2), B}


STEPS = st.lists(
    st.tuples(st.sampled_from([A, B, C]), st.booleans(), st.floats(0, 40)), max_size=80
)


@given(STEPS)
def test_whatever_happens_somebody_can_be_tried_and_at_most_half_are_out(
    steps: list[tuple[Key, bool, float]],
) -> None:
    outliers, now, among = Outliers(), 0.0, {A, B, C}
    for key, well, later in steps:
        now += later
        if well:
            outliers.succeeded(key)
        else:
            outliers.failed(key, among, now)
        assert outliers.out(now) <= 1
        assert len(outliers.usable(among, now)) >= 2
        if well:
            assert key in outliers.usable(among, now)


# --- retries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "fault", "failure", "elsewhere"),
    [
        (UpstreamBroken("x"), True, True, True),
        (UpstreamInvalid("x"), True, True, True),
        (UpstreamTimeout("x"), True, True, True),
        (EngineError("x"), False, True, True),
        (EngineBusy("x"), False, True, True),
        (QueueFull("x"), False, False, True),
        (BadRequest("x"), False, False, False),
        (ContextLengthExceeded("x"), False, False, False),
    ],
)
def test_whose_fault_an_error_is(
    error: BadRequest, fault: bool, failure: bool, elsewhere: bool
) -> None:
    assert engines_fault(error) is fault
    assert counts_as_failure(error) is failure
    assert may_succeed_elsewhere(error) is elsewhere


@given(st.lists(st.floats(0, 0.2), min_size=15, max_size=300))
def test_no_ten_seconds_hold_more_retries_than_a_fifth_of_their_requests(
    pauses: list[float],
) -> None:
    """Every request wants a retry; three are free."""
    budget, now = RetryBudget(), 100.0
    asked: list[float] = []
    retried: list[float] = []
    for pause in pauses:
        now += pause
        budget.asked(now)
        asked.append(now)
        if budget.take(now):
            retried.append(now)
        recent = [at for at in retried if int(at) > int(now) - 10]
        requests = [at for at in asked if int(at) > int(now) - 10]
        assert len(recent) <= max(3, 0.2 * len(requests))
    assert len(retried) >= 3


def test_the_budget_comes_back() -> None:
    budget = RetryBudget()
    assert [budget.take(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert not budget.take(9.0)
    assert budget.take(10.0)


# --- poison -------------------------------------------------------------------------------------

BODY, OTHER = fingerprint(b"a"), fingerprint(b"b")


@pytest.mark.parametrize("told_first", [True, False])
def test_two_kills_and_it_is_refused_for_ten_minutes(told_first: bool) -> None:
    quarantine = Quarantine()
    for number, key in enumerate((A, B)):
        now = 10.0 * number
        assert quarantine.refused_for(BODY, now) is None
        if told_first:
            quarantine.lost(key, CrashCause.UNKNOWN, now)
        quarantine.broke(key, BODY, now)
        if not told_first:
            quarantine.lost(key, CrashCause.UNKNOWN, now + 1)
        assert quarantine.may_be_replayed(BODY, now) is (number == 0)
    seconds = quarantine.refused_for(BODY, 12.0)
    assert seconds is not None
    assert 590 < seconds < 600
    assert quarantine.refused_for(OTHER, 12.0) is None
    assert quarantine.refused_for(BODY, 12.0 + seconds) is None


def test_what_is_no_requests_fault_is_held_against_none() -> None:
    for cause in (CrashCause.KILLED, CrashCause.GPU_OOM, CrashCause.HOST_OOM, None):
        quarantine = Quarantine()
        for key in (A, B, C):
            quarantine.broke(key, BODY, 0)
            quarantine.lost(key, cause, 1)
        assert quarantine.refused_for(BODY, 2) is None, cause
    guilty = {cause for cause in CrashCause if can_be_a_requests_fault(cause)}
    assert guilty >= {CrashCause.UNKNOWN, CrashCause.UNRESPONSIVE, CrashCause.EXIT_UNREQUESTED}


def test_a_break_without_a_death_is_forgotten_and_an_answer_clears() -> None:
    quarantine = Quarantine()
    quarantine.broke(A, BODY, 0)
    quarantine.lost(A, CrashCause.UNKNOWN, 31)  # much later, and for another reason
    quarantine.broke(B, BODY, 40)
    quarantine.lost(B, CrashCause.UNKNOWN, 41)
    assert quarantine.refused_for(BODY, 42) is None
    quarantine.answered(BODY)
    quarantine.broke(C, BODY, 50)
    quarantine.lost(C, CrashCause.UNKNOWN, 51)
    assert quarantine.refused_for(BODY, 52) is None


def test_memory_of_bodies_is_bounded() -> None:
    quarantine = Quarantine()
    for key in (A, B):
        quarantine.broke(key, BODY, 0)
        quarantine.lost(key, CrashCause.UNKNOWN, 0)
    for number in range(5000):
        quarantine.broke(C, str(number), 0)
    assert quarantine.refused_for(BODY, 1) is None


# --- descriptors --------------------------------------------------------------------------------


@given(st.integers(0, 70_000), st.integers(16, 65_536))
def test_something_is_always_kept_back(used: int, limit: int) -> None:
    if room(used, bound(limit)) is Room.PLENTY:
        assert used + min(4, limit // 4) <= limit
    assert room(0, bound(limit)) is Room.PLENTY
    assert room(used, bound(-1)) is Room.PLENTY
