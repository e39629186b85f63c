"""Faults of engines as the gateway meets them: broken answers, refusals, poison, bad replicas."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from engine_launchers.base import CrashCause
from tests.faults.lab import Lab, scenario
from tests.harness import until
from tests.stage import Stage, staged
from tests.streams import events_of, told

# What the fake does to one request, and the code that the client must see.
BROKEN = ["fin", "rst", "short-chunk", "half-frame", "half-line", "garbage", "html", "done"]
INVALID = ["bad-utf8", "no-json", "array", "no-choices", "odd-choice", "endless"]
CUTS: list[tuple[dict[str, Any], str]] = [
    *(({"cut_after_tokens": 2, "cut_how": how}, "engine_died") for how in BROKEN),
    *(({"cut_after_tokens": 2, "cut_how": how}, "upstream_invalid") for how in INVALID),
    ({"cut_after_tokens": 0, "cut_how": "fin"}, "engine_died"),
    ({"cut_after_tokens": 0, "cut_how": "rst"}, "engine_died"),
    ({"cut_after_tokens": 0, "cut_how": "html"}, "upstream_invalid"),
    ({"cut_after_tokens": 0, "cut_how": "done"}, "engine_error"),
    ({"no_finish": True}, "engine_died"),
    ({"error_after_tokens": 2}, "engine_died"),
    ({"error_after_tokens": 2, "done_after_error": True}, "engine_died"),
    ({"error_after_tokens": 0}, "engine_died"),
]
STREAMS = [
    ("/generate_stream", {"max_new_tokens": 6}),
    ("/v1/completions", {"max_tokens": 6, "stream": True}),
]


def faulty(**knobs: Any) -> str:
    """A prompt that has the fake behave so."""
    return "Hi fake=" + json.dumps(knobs)


@scenario("F33", "fake")
def answers_cut_in_every_way(lab: Lab) -> None:
    """A good request between the bad ones: no engine is restarted for what requests did."""
    room = lab.make("--tps", "500", serial=False).start()
    for knobs, code in CUTS:
        for path, body in STREAMS:
            began = time.monotonic()
            status, events = events_of(
                room.http, room.url + path, {**body, "prompt": faulty(**knobs)}
            )
            lab.took(time.monotonic() - began)
            came = told(events)
            assert (came.errors, came.finished, came.after_end) == ((code,), False, 0), knobs
            begun = bool(knobs.get("cut_after_tokens") or knobs.get("no_finish"))
            assert status == 200 or not begun, knobs
            assert came.tokens == tuple(range(len(came.tokens))), knobs
        answer = room.generate(faulty(**knobs), max_new_tokens=6)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, code), knobs
        assert room.generate("Hi", max_new_tokens=2).json()["token_count"] == 2
    assert room.wait_state("ready")["restarts"] == 0


# --- refusals and stalls ------------------------------------------------------------------------

REFUSALS: list[tuple[dict[str, Any], int, str]] = [
    ({"status": 500}, 502, "engine_error"),
    ({"status": 503, "retry_after": 7}, 503, "engine_busy"),
    ({"status": 429, "retry_after": 7}, 429, "queue_full"),
    ({"header_delay_s": 30.0}, 504, "engine_stalled"),
    ({"trickle_s": 0.2}, 504, "engine_stalled"),
    ({"hang_after_tokens": 0}, 504, "engine_stalled"),
    ({"hang_after_tokens": 2}, 504, "engine_stalled"),
    ({"cut_after_tokens": 0, "cut_how": "pings"}, 504, "engine_stalled"),
]


@scenario("F34", "fake")
def refusals_and_stalls_are_mapped_in_time(lab: Lab) -> None:
    """One replica: nothing to retry on. The deadline is `stall_timeout_s` and 0.2 s a token."""
    with staged([]) as stage, ThreadPoolExecutor(len(REFUSALS)) as pool:

        def asked(knobs: dict[str, Any]) -> tuple[httpx.Response, float]:
            began = time.monotonic()
            return stage.ask(faulty(**knobs)), time.monotonic() - began

        for (knobs, status, code), (answer, seconds) in zip(
            REFUSALS, pool.map(asked, (knobs for knobs, _, _ in REFUSALS)), strict=True
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), knobs
            assert answer.headers.get("retry-after") == ("7" if "retry_after" in knobs else None)
            lab.took(abs(seconds - (1.6 if code == "engine_stalled" else 0)))
        assert stage.metric("engineroom_retries_total") == 0


@scenario("F34", "fake")
def one_bad_replica_is_retried_past(lab: Lab) -> None:
    """Nobody sees what only one replica does, before the first byte; after it nobody is spared."""
    bad = ["--status", "503"], ["--cut-after-tokens", "0"], ["--hang-after-tokens", "0"]
    with staged(*bad, [], []) as stage:
        for number, knobs in enumerate(bad):
            stage.publish(f"m-{number}", "m-3")
            silent = 1.2 if knobs[0] == "--hang-after-tokens" else 0
            began = time.monotonic()
            assert stage.ask("try").status_code == 200, knobs
            lab.took(max(0.0, time.monotonic() - began - silent))
        assert stage.metric("engineroom_retries_total", code="engine_busy") == 1
        assert stage.metric("engineroom_retries_total", code="engine_died") == 1
        assert stage.metric("engineroom_retries_total", code="engine_stalled") == 1
        stage.publish("m-3", "m-4")
        before = sum(stage.requests())
        with stage.stream(faulty(cut_after_tokens=2), max_new_tokens=5) as events:
            came = told(events)
        assert (came.tokens, came.errors) == ((0, 1), ("engine_died",))
        assert sum(stage.requests()) == before + 1


@scenario("F34", "fake")
def retries_stay_within_their_budget(lab: Lab) -> None:
    """All replicas refuse everything: a fifth more work, not twice as much."""
    asked = 60
    with staged(["--status", "503"], ["--status", "503"]) as stage:
        for i in range(asked):
            began = time.monotonic()
            assert stage.ask(f"no {i}").status_code == 503
            lab.took(time.monotonic() - began)
        assert asked < sum(stage.requests()) <= 1.2 * asked
        assert stage.metric("engineroom_retries_refused_total", model="m") > 0


# --- poison -------------------------------------------------------------------------------------

KILLER = {"exit_code_after_tokens": "0:-11"}  # a bad address


@scenario("F38", "fake")
def poison_is_tried_twice_and_then_refused(lab: Lab) -> None:
    """Through the whole server: the supervisor's word is what makes a suspect a killer."""
    room = lab.make().start()
    body: dict[str, Any] = {"prompt": faulty(**KILLER), "max_new_tokens": 4}
    for _ in range(2):
        before = room.engine()["pid"]
        assert room.generate(**body).json()["error"]["code"] == "engine_died"
        until(lambda: room.engine()["pid"] not in (None, before), 20, "a new engine")  # noqa: B023
        room.wait_state("ready")
    pid = room.engine()["pid"]
    for _ in range(5):
        began = time.monotonic()
        answer = room.generate(**body)
        lab.took(time.monotonic() - began)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "poison_request")
    assert room.generate("something else", max_new_tokens=1).status_code == 200
    assert (room.engine()["pid"], room.engine()["restarts"]) == (pid, 2)


@scenario("F38", "fake")
def poison_kills_at_most_two_replicas(lab: Lab) -> None:
    """Three replicas: the first dies, the replay kills the second, the third is never asked."""
    with staged([], [], []) as stage:
        answer = stage.ask(faulty(**KILLER))
        assert answer.json()["error"]["code"] == "engine_died"
        until(lambda: sum(each.alive for each in stage.engines) == 1, 5, "two died")
        stage.publish(crashed=CrashCause.CRASHED)
        for path in ("/generate", "/generate_stream"):
            began = time.monotonic()
            answer = stage.http.post(
                stage.url + path, json={"prompt": faulty(**KILLER), "max_new_tokens": 3}
            )
            lab.took(time.monotonic() - began)
            assert answer.json()["error"]["code"] == "poison_request"
        assert stage.metric("engineroom_quarantined_requests_total", model="m") == 2
        assert stage.ask("Hi").status_code == 200
        assert sum(each.alive for each in stage.engines) == 1


# --- replicas that fail -------------------------------------------------------------------------


@scenario("F41", "fake")
def a_failing_replica_is_left_out_and_two_are_tried_all_the_same(lab: Lab) -> None:
    with staged(["--status", "500"], []) as stage:
        bad, good = stage.engines
        until(lambda: stage.ask().status_code and _ejected(stage), 10, "it is left out")
        seen = bad.stats()["requests"]
        lab.took(seen)  # the bound is a number of requests here
        assert [stage.ask(f"x {i}").status_code for i in range(20)] == [200] * 20
        assert bad.stats()["requests"] == seen
        good.end()
        stage.publish()  # the only one left is the bad one: asked in spite of all
        assert stage.ask("alone").json()["error"]["code"] == "engine_error"
        assert bad.stats()["requests"] == seen + 1


@scenario("F41", "fake")
def when_all_fail_all_are_tried(lab: Lab) -> None:
    """Half may be left out; when the rest fails too, nobody is."""
    with staged(["--status", "500"], ["--status", "500"]) as stage:
        asked = 0
        while not _ejected(stage):
            asked += 1
            assert stage.ask(f"no {asked}").json()["error"]["code"] == "engine_error"
        lab.took(asked)
        for i in range(40):
            assert stage.ask(f"no {i}").json()["error"]["code"] == "engine_error"
        first, second = stage.requests()
        assert stage.metric("engineroom_ejections_total", model="m") == 1
        assert _ejected(stage)
        assert min(first, second) > 5, (first, second)


def _ejected(stage: Stage) -> bool:
    return stage.metric("engineroom_replicas_ejected", model="m") == 1
