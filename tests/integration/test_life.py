"""A whole server over the fake engine: start, serve, heal, survive, adopt, drain, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.harness import SLACK, Room, free_ports, until, within

RoomMaker = Callable[..., Room]


def test_it_starts_serves_and_leaves_nothing(make_room: RoomMaker) -> None:
    room = make_room().start()
    answer = room.generate("Hi", max_new_tokens=3).json()
    assert answer["generated_text"] == "w0 w1 w2"
    assert answer["token_count"] == 3
    assert room.http.get(f"{room.url}/health/ready").status_code == 200
    assert len(list(room.run_folder.glob("*.sock"))) == 3  # control, engine, gateway
    assert room.stop() == 0
    assert room.processes() == []
    assert not room.run_folder.exists()


def test_a_killed_engine_ends_its_stream_with_one_error_and_is_replaced(
    make_room: RoomMaker,
) -> None:
    room = make_room("--tps", "20").start()
    before = room.engine()
    with room.stream("Hi", max_new_tokens=200) as events:
        assert json.loads(next(events))["index"] == 0
        os.kill(before["pid"], signal.SIGKILL)
        with within(1, "the end is told"):
            rest = list(events)
    assert "[DONE]" not in rest
    errors = [json.loads(e) for e in rest if "error" in json.loads(e)]
    assert [e["error"]["code"] for e in errors] == ["engine_died"]
    assert rest[-1] == json.dumps(errors[0], ensure_ascii=False)
    assert room.generate("again", max_new_tokens=2).status_code == 200
    after = room.engine()
    assert after["pid"] != before["pid"]
    assert room.metric("engineroom_engine_restarts_total", replica="demo-0", cause="killed") == 1


def test_engines_outlive_a_killed_supervisor_and_are_adopted(make_room: RoomMaker) -> None:
    room = make_room("--tps", "20").start()
    before, gateway = room.engine(), room.engine("gateway-0")
    with room.stream("Hi", max_new_tokens=40) as events:
        next(events)
        room.kill()
        rest = list(events)
    assert json.loads(rest[-2])["done"] is True
    assert rest[-1] == "[DONE]"
    assert room.generate("alone", max_new_tokens=2).status_code == 200
    assert room.http.get(f"{room.url}/health").json()["supervisor"] == "away"
    room.start()
    assert room.ready["start_seconds"] < 2 * SLACK
    after = room.engine()
    assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])
    assert room.engine("gateway-0")["pid"] == gateway["pid"]
    assert room.generate("on", max_new_tokens=2).status_code == 200
    until(
        lambda: room.http.get(f"{room.url}/health").json()["supervisor"] == "connected",
        5,
        "the gateway finds the new supervisor",
    )
    types = [event["type"] for event in room.admin("GET", "/admin/events").json()["events"]]
    assert types.count("engine.adopted") == 2
    assert room.stop() == 0
    assert room.processes() == []


def test_sigterm_lets_running_streams_finish_and_refuses_new_ones(make_room: RoomMaker) -> None:
    room = make_room("--tps", "20", serial=False).start()
    assert room.process is not None
    with room.stream("Hi", max_new_tokens=60) as events:
        next(events)
        room.process.send_signal(signal.SIGTERM)
        refused = until(
            lambda: r if (r := room.generate("x", max_new_tokens=1)).status_code == 503 else None,
            5,
            "503",
        )
        rest = list(events)
    assert refused.json()["error"]["code"] == "draining"
    assert int(refused.headers["retry-after"]) >= 1
    assert json.loads(rest[-2])["token_count"] == 60
    assert rest[-1] == "[DONE]"
    assert room.wait_end() == 0
    assert room.processes() == []


def test_the_drain_deadline_cuts_a_long_stream_with_one_error(make_room: RoomMaker) -> None:
    room = make_room("--tps", "10", drain_s=0.5).start()
    assert room.process is not None
    with room.stream("Hi", max_new_tokens=500) as events:
        next(events)
        room.process.send_signal(signal.SIGTERM)
        rest = [json.loads(e) for e in events]
    assert "error" in rest[-1]
    assert room.wait_end() == 0
    assert room.processes() == []


def test_a_second_signal_ends_the_drain_at_once(make_room: RoomMaker) -> None:
    room = make_room("--tps", "10", drain_s=60).start()
    assert room.process is not None
    with room.stream("Hi", max_new_tokens=500) as events:
        next(events)
        room.process.send_signal(signal.SIGTERM)
        room.wait_state("draining")
        with within(8, "the end"):
            room.process.send_signal(signal.SIGTERM)
            list(events)
            assert room.wait_end() == 0


def test_a_restart_starts_the_new_engine_before_the_old_one_drains(make_room: RoomMaker) -> None:
    room = make_room("--tps", "20", drain_s=60).start()
    before = room.engine()
    with room.stream("Hi", max_new_tokens=120) as events:
        next(events)
        assert room.admin("POST", "/admin/models/demo/restart").status_code == 202
        room.wait_state("ready", "demo-1")
        late = room.generate("late", max_new_tokens=2)  # the new engine serves it at once
        assert late.status_code == 200
        assert room.engine("demo-0")["state"] == "draining"
        rest = list(events)
    assert json.loads(rest[-2])["token_count"] == 120
    until(lambda: len(room.engines()) == 1, 10, "the old one is gone")
    assert not psutil.pid_exists(before["pid"])
    assert room.metric("engineroom_engine_restarts_total", replica="demo-1") == 0


def test_without_memory_for_two_a_restart_drains_and_requests_wait(make_room: RoomMaker) -> None:
    room = make_room("--tps", "20", max_ram_bytes=150 << 20).start()
    before = room.engine()
    results: list[int] = []
    with room.stream("Hi", max_new_tokens=60) as events:
        next(events)
        accepted = room.admin("POST", "/admin/models/demo/restart", json={"drain_s": 10})
        assert accepted.status_code == 202
        room.wait_state("draining")
        late = threading.Thread(
            target=lambda: results.append(room.generate("late", max_new_tokens=2).status_code)
        )
        late.start()
        rest = list(events)
    assert rest[-1] == "[DONE]"
    late.join(20 * SLACK)
    assert results == [200]
    after = room.wait_state("ready")
    assert after["pid"] != before["pid"]
    assert after["generation"] == before["generation"] + 1
    assert room.metric("engineroom_engine_restarts_total", replica="demo-0") == 0


def test_stop_and_start_of_a_model(make_room: RoomMaker) -> None:
    room = make_room().start()
    assert room.admin("POST", "/admin/models/demo/stop").status_code == 202
    room.wait_state("stopped")
    refused = room.generate("x")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
    assert "retry-after" in refused.headers
    health = room.http.get(f"{room.url}/health").json()
    assert (health["status"], health["models"][0]["state"]) == ("degraded", "stopped")
    assert room.http.get(f"{room.url}/health/ready").status_code == 503
    assert room.admin("POST", "/admin/models/demo/start").status_code == 202
    room.wait_state("ready")
    assert room.generate("x", max_new_tokens=1).status_code == 200


def test_a_crashed_gateway_comes_back_and_engines_are_untouched(make_room: RoomMaker) -> None:
    room = make_room().start()
    before = room.engine()
    os.kill(room.engine("gateway-0")["pid"], signal.SIGKILL)
    room.wait_state("ready", "gateway-0")
    until(lambda: room.engine("gateway-0")["generation"] == 2, 10, "a new gateway")
    room.wait_state("ready", "gateway-0")
    until(
        lambda: room.http.get(f"{room.url}/health/ready").status_code == 200, 5, "routes are back"
    )
    assert room.generate("x", max_new_tokens=1).status_code == 200
    assert room.engine()["pid"] == before["pid"]


def test_a_crash_loop_ends_in_failed_with_the_cause(make_room: RoomMaker) -> None:
    room = make_room("--fail-on-start", "7", restart_limit=1)
    room.launch()
    assert room.wait_end() == 70
    error = room.log.read_text().splitlines()[-1]
    assert "demo-0 could not be started" in error
    assert "exited with code 7" in error
    assert "Traceback" not in room.log.read_text()
    assert room.processes() == []


def test_a_deterministic_failure_is_not_tried_again(make_room: RoomMaker) -> None:
    text = "ValueError: Failed to load model from file: x"
    room = make_room("--fail-on-start", "1", "--fail-text", text)
    room.launch()
    assert room.wait_end() == 70
    assert "model_invalid" in room.log.read_text()
    assert room.log.read_text().count("new=starting") == 2  # engine and gateway, once each


def test_out_of_memory_steps_down_a_rung_and_says_so(make_room: RoomMaker) -> None:
    room = make_room(
        "--oom-after", "2", "--oom-text", "llama_cpp"
    )  # the readiness probe is the first
    room.start()
    assert room.generate("a", max_new_tokens=4).status_code == 200
    assert room.generate("b", max_new_tokens=4).status_code == 502
    room.wait_state("ready")
    plan = room.admin("GET", "/admin/models/demo/plan").json()
    assert plan["rung"] == 1
    assert plan["tuning"]["max_model_len"] == 1024
    assert "context 2048 -> 1024" in plan["reasons"][-1]


def test_an_exit_with_code_0_mid_stream_is_a_crash(make_room: RoomMaker) -> None:
    room = make_room("--exit-code-after-tokens", "3:0").start()
    with room.stream("Hi", max_new_tokens=10) as events:
        rest = [json.loads(e) for e in events]
    assert "error" in rest[-1]
    until(
        lambda: room.metric("engineroom_engine_restarts_total", cause="exit_unrequested"),
        10,
        "the restart is counted",
    )


def test_two_supervisors_never_share_a_data_directory(make_room: RoomMaker) -> None:
    room = make_room().start()
    port, admin_port = free_ports(2)
    second = make_room(port=port, admin_port=admin_port)
    second.launch()
    assert second.wait_end() == 75
    assert "already runs" in second.log.read_text()
    second.process = None
    assert room.generate("x", max_new_tokens=1).status_code == 200


def test_a_changed_setting_replaces_the_gateway_and_keeps_the_engine(make_room: RoomMaker) -> None:
    room = make_room().start()
    before, gateway = room.engine(), room.engine("gateway-0")
    room.kill()
    again = make_room(max_queue=3, port=int(room.url.rsplit(":", 1)[1])).start()
    assert again.engine()["pid"] == before["pid"]
    assert again.engine("gateway-0")["pid"] != gateway["pid"]
    assert again.generate("x", max_new_tokens=1).status_code == 200


@pytest.mark.slow
def test_a_model_that_is_not_wanted_any_more_is_stopped(make_room: RoomMaker) -> None:
    room = make_room().start()
    before = room.engine()
    room.kill()
    again = make_room(context=256).start()  # another plan: the old engine does not fit the wish
    assert again.engine()["pid"] != before["pid"]
    assert not psutil.pid_exists(before["pid"])


def test_an_environment_variable_cannot_steer_an_engine(make_room: RoomMaker) -> None:
    room = make_room("--print-env")
    room.env.update(LLAMA_ARG_PORT="1", API_KEY="secret", VLLM_PORT="tcp://x")
    room.start()
    names = set(
        json.loads(
            next(
                line.split(":", 1)[1]
                for line in Path(room.engine()["log"]).read_text().splitlines()
                if line.startswith("environment:")
            )
        )
    )
    assert not {"PORT", "HOST", "API_KEY", "LLAMA_ARG_PORT", "VLLM_PORT"} & names
    assert {"PATH", "TMPDIR"} <= names


def test_an_engine_that_takes_most_of_the_memory_is_adopted_all_the_same(
    make_room: RoomMaker,
) -> None:
    """What is adopted is the plan that runs, not what would fit into what is left."""
    room = make_room("--oom-after", "2", "--oom-text", "llama_cpp").start()
    room.generate("a", max_new_tokens=4)
    room.generate("b", max_new_tokens=4)
    until(lambda: room.engine()["generation"] == 2, 10, "the smaller plan")
    before = room.wait_state("ready")
    assert room.admin("GET", "/admin/models/demo/plan").json()["rung"] == 1
    room.kill()
    room.start()
    assert room.engine()["pid"] == before["pid"]
    assert room.admin("GET", "/admin/models/demo/plan").json()["rung"] == 1


@pytest.mark.slow
def test_orders_during_a_shutdown_are_refused(make_room: RoomMaker) -> None:
    room = make_room("--tps", "10", drain_s=3).start()
    assert room.process is not None
    with room.stream("Hi", max_new_tokens=500) as events:
        next(events)
        room.process.send_signal(signal.SIGTERM)
        room.wait_state("draining")
        for order in ("start", "restart", "stop"):
            refused = room.admin("POST", f"/admin/models/demo/{order}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        list(events)
    assert room.wait_end() == 0
    assert room.processes() == []


def test_a_folder_that_cannot_be_made_is_a_failed_start_not_a_hang(make_room: RoomMaker) -> None:
    room = make_room(restart_limit=0)
    room.data.mkdir(parents=True)
    (room.data / "instances").mkdir()
    (room.data / "instances" / "demo-0").write_text("in the way")
    room.launch()
    assert room.wait_end() == 70
    assert "could not be started" in room.log.read_text()
    assert room.processes() == []


def test_the_log_of_an_earlier_failure_blames_nobody(make_room: RoomMaker) -> None:
    room = make_room("--exit-code-after-tokens", "2:1").start()
    log = Path(room.engine()["log"])
    with log.open("a") as file:
        file.write("ValueError: Failed to load model from file: old\n")
    os.kill(room.engine()["pid"], signal.SIGKILL)
    until(lambda: room.engine()["generation"] == 2, 10, "restarted")
    room.wait_state("ready")
    room.generate("x", max_new_tokens=5)
    until(lambda: room.engine()["generation"] == 3, 10, "it came back")
    assert room.metric("engineroom_engine_restarts_total", cause="model_invalid") == 0


def test_ipv6_loopback(make_room: RoomMaker) -> None:
    room = make_room(host="::1").start()
    assert room.url.startswith("http://[::1]:")
    assert room.generate("x", max_new_tokens=1).status_code == 200


@pytest.mark.slow
def test_a_stopped_engine_is_found_by_its_probe_and_replaced(make_room: RoomMaker) -> None:
    room = make_room(probe_timeout_s=0.4, probe_interval_s=0.2).start()
    before = room.engine()
    os.kill(before["pid"], signal.SIGSTOP)
    room.wait_generation(before["generation"] + 1)
    room.wait_state("ready")
    assert room.generate("x", max_new_tokens=1).status_code == 200
    assert room.metric("engineroom_engine_restarts_total", cause="unresponsive") >= 1


@pytest.mark.slow
def test_a_stopped_shim_does_not_hold_up_the_end(make_room: RoomMaker) -> None:
    room = make_room(stop_grace_s=0.5).start()
    shim = psutil.Process(room.engine()["pid"]).parent()
    assert shim is not None
    os.kill(shim.pid, signal.SIGSTOP)
    assert room.stop() == 0
    assert room.processes() == []


@pytest.mark.slow
def test_a_changed_command_replaces_an_engine_once_and_is_adopted_ever_after(
    make_room: RoomMaker,
) -> None:
    room = make_room().start()
    first = room.engine()["pid"]
    room.kill()
    changed = make_room("--tps", "500").start()
    second = changed.engine()["pid"]
    assert second != first
    changed.kill()
    assert changed.start().engine()["pid"] == second


def test_a_gateway_that_gets_no_processor_is_not_taken_for_one_that_hangs(
    make_room: RoomMaker,
) -> None:
    room = make_room(probe_timeout_s=0.4, probe_interval_s=0.2).start()
    gateway = psutil.Process(room.engine("gateway-0")["pid"])
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setscheduler(gateway.pid, os.SCHED_IDLE, os.sched_param(0))
    gateway.cpu_affinity(usable[:1])
    if (group := Path(f"/proc/{gateway.pid}/autogroup")).exists():
        group.write_text("19")
    loop = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(loop, start_new_session=True) for _ in range(12)]
    try:
        for each in others:
            psutil.Process(each.pid).cpu_affinity(usable[:1])
        until(lambda: room.log.read_text().count("gateway-0 is starved") >= 4, 30, "it starves")
    finally:
        for each in others:
            each.kill()
            each.wait()
    assert room.generate("on", max_new_tokens=1).status_code == 200
    assert room.engine("gateway-0")["pid"] == gateway.pid
