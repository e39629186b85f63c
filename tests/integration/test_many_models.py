"""Several models over the fake engine: on demand, swaps, idle unload, replicas, reload."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness import SLACK, Room, until, within

pytestmark = pytest.mark.slow
RoomMaker = Callable[..., Room]


def two(**more: Any) -> list[dict[str, Any]]:
    return [{"model": "demo", "name": name, **more} for name in ("a", "b")]


def test_a_model_is_loaded_by_its_first_requests_and_once(make_room: RoomMaker) -> None:
    room = make_room("--load-s", "0.5", serial=False, models=two()).start()
    assert [room.model(name)["phase"] for name in "ab"] == ["absent", "absent"]
    assert room.processes_named("engine.py") == []
    assert room.http.get(f"{room.url}/health/ready").status_code == 200
    with ThreadPoolExecutor(20) as many:
        answers = list(many.map(lambda n: room.generate(f"x{n}", model="a"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(room.events("model.load")) == 1
    assert room.model("b")["phase"] == "absent"
    assert room.generate("x", model="b", max_new_tokens=1).status_code == 200
    assert room.model("a")["phase"] == "serving"  # there is memory for both
    assert room.generate("x").json()["error"]["code"] == "invalid_request"  # which one?


def test_models_that_do_not_fit_together_take_turns(make_room: RoomMaker) -> None:
    room = make_room("--tps", "50", models=two(), max_ram_bytes=150 << 20, serial=False).start()
    stop, failures = threading.Event(), []

    def client(first: str, second: str) -> None:
        while not stop.is_set():
            for name in (first, second):
                answer = room.http.post(
                    f"{room.url}/generate",
                    json={"prompt": "x", "model": name, "max_new_tokens": 5},
                    timeout=60 * SLACK,
                )
                if answer.status_code != 200:
                    failures.append(answer.text)

    clients = [threading.Thread(target=client, args=pair) for pair in ("ab", "ba", "ab", "ba")]
    for each in clients:
        each.start()
    try:
        until(lambda: len(room.events("model.load")) >= 4, 60, "they swap")
    finally:
        stop.set()
        for each in clients:
            each.join(60 * SLACK)
    assert failures == []
    whys = [event["detail"]["why"] for event in room.events("model.unload")]
    assert set(whys) <= {"a needs its place", "b needs its place"}
    running = [row for name in "ab" for row in room.engines(name) if row["pid"]]
    assert len(running) == 1
    account = room.admin("GET", "/admin/memory").json()
    assert account["devices"]["ram"]["budget"] == 150 << 20


def test_idle_models_leave_after_their_time_and_keep_alive_beats_it(make_room: RoomMaker) -> None:
    room = make_room(models=two(ttl_s=1)).start()
    assert room.generate("x", model="a", max_new_tokens=1).status_code == 200
    until(lambda: room.model("a")["phase"] == "absent", 10, "it left")
    (event,) = room.events("model.unload")
    assert event["detail"]["why"] == "nobody used it for 1 s"
    assert room.generate("x", model="a", max_new_tokens=1, keep_alive="1h").status_code == 200
    assert room.generate("x", model="b", max_new_tokens=1, keep_alive=0).status_code == 200
    until(lambda: room.model("b")["phase"] == "absent", 10, "it left at once")
    assert room.model("a")["phase"] == "serving"
    bad = room.generate("x", model="a", keep_alive="soon")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "keep_alive")


def test_a_pinned_model_never_leaves_and_the_other_is_told_why(make_room: RoomMaker) -> None:
    room = make_room(models=two(), max_ram_bytes=150 << 20).start()
    assert room.generate("x", model="a", max_new_tokens=1).status_code == 200
    assert room.admin("POST", "/admin/models/a/pin").status_code == 202
    refused = room.generate("x", model="b", max_new_tokens=1)
    assert refused.status_code == 503
    assert "a pinned" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert room.admin("POST", "/admin/models/a/unpin").status_code == 202
    until(
        lambda: room.generate("x", model="b", max_new_tokens=1).status_code == 200, 20, "its turn"
    )


def test_two_replicas_share_the_work_and_roll_without_a_gap(make_room: RoomMaker) -> None:
    room = make_room("--tps", "50", replicas=2).start()
    first = {row["id"]: row["pid"] for row in room.engines()}
    assert set(first) == {"demo-0", "demo-1"}
    with ThreadPoolExecutor(8) as many:
        streams = [many.submit(_whole_stream, room, 60) for _ in range(8)]
        room.admin("POST", "/admin/models/demo/restart")
        for each in streams:
            assert each.result() == 60
    until(
        lambda: (
            not {row["pid"] for row in room.engines()} & set(first.values())
            and len(room.engines()) == 2
        ),
        30,
        "both are new",
    )
    assert room.generate("x", max_new_tokens=1).status_code == 200
    assert room.admin("POST", "/admin/models/demo/scale", json={"replicas": 1}).status_code == 202
    until(lambda: len(room.engines()) == 1, 10, "one is enough")
    assert room.generate("x", max_new_tokens=1).status_code == 200


def _whole_stream(room: Room, tokens: int) -> int:
    with room.stream("Hi", max_new_tokens=tokens) as events:
        told = list(events)
    assert told[-1] == "[DONE]", told[-1]
    assert [json.loads(e)["token"].strip() for e in told[:-2]] == [f"w{n}" for n in range(tokens)]
    return int(json.loads(told[-2])["token_count"])


def test_replicas_and_unloaded_models_outlive_a_killed_supervisor(make_room: RoomMaker) -> None:
    models = [{"model": "demo", "name": "a", "replicas": 2}, {"model": "demo", "name": "b"}]
    room = make_room(models=models).start()
    assert room.generate("x", model="a", max_new_tokens=1).status_code == 200
    until(lambda: [r["state"] for r in room.engines("a")] == ["ready"] * 2, 10, "both serve")
    before = [(row["id"], row["pid"]) for row in room.engines("a")]
    room.kill()
    room.start()
    assert [(row["id"], row["pid"]) for row in room.engines("a")] == before
    assert room.model("b")["phase"] == "absent"
    assert room.generate("x", model="b", max_new_tokens=1).status_code == 200


def test_a_reload_touches_only_what_changed_and_a_bad_file_nothing(
    make_room: RoomMaker, tmp_path: Path
) -> None:
    file = tmp_path / "engineroom.yaml"

    def write(*models: str) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_text("models:\n" + "".join(f"  - {{model: demo, {m}}}\n" for m in models))
        fresh.replace(file)

    write("name: a, preload: true", "name: b, preload: true")
    room = make_room(file=file).start()
    before = {name: room.engines(name)[0]["pid"] for name in "ab"}
    write("name: a, preload: true, ttl_s: 900", "name: b, context: 256", "name: c, preload: true")
    until(lambda: room.events("config.reloaded"), 10, "the file is noticed")
    (event,) = room.events("config.reloaded")
    told = event["detail"]
    assert (told["added"], told["changed"], told["removed"]) == (["c"], ["a", "b"], [])
    until(lambda: room.engines("b")[0]["pid"] not in (None, before["b"]), 20, "b is replaced")
    assert room.engines("a")[0]["pid"] == before["a"]
    assert room.model("a")["ttl_s"] == 900
    assert room.generate("x", model="c", max_new_tokens=1).status_code == 200
    context = {each["name"]: each["context"] for each in _models(room)}
    assert context["b"] == 256
    file.write_text("models: [{model: demo, name: a, tll_s: 5}]")
    until(lambda: room.events("config.rejected"), 10, "the bad file is told")
    answer = room.admin("POST", "/admin/reload")
    assert answer.status_code == 400
    assert "did you mean ttl_s?" in answer.json()["error"]["message"]
    assert set(context) == {each["name"] for each in _models(room)}
    write("name: a, preload: true, ttl_s: 900")
    assert room.process is not None
    room.process.send_signal(signal.SIGHUP)
    until(lambda: len(_models(room)) == 1, 20, "b and c are gone")
    assert room.engines("a")[0]["pid"] == before["a"]
    assert room.generate("x", model="b").status_code == 404


def _models(room: Room) -> list[dict[str, Any]]:
    return list(room.http.get(f"{room.url}/models").json()["models"])


def test_a_stopped_model_stays_out_until_it_is_started(make_room: RoomMaker) -> None:
    room = make_room(models=two()).start()
    assert room.generate("x", model="a", max_new_tokens=1).status_code == 200
    assert room.admin("POST", "/admin/models/a/stop").status_code == 202
    until(lambda: room.model("a")["phase"] == "off", 10, "it stopped")
    with within(2, "it is told"):
        assert room.generate("x", model="a").status_code == 503
    assert room.admin("POST", "/admin/models/a/unload").status_code == 202
    assert room.admin("POST", "/admin/models/a/load").status_code == 202
    until(lambda: room.model("a")["phase"] == "serving", 10, "it is back")


def test_a_roll_that_is_stopped_leaves_nothing_locked(make_room: RoomMaker) -> None:
    room = make_room("--load-s", "1").start()
    for order in ("unload", "stop"):
        room.admin("POST", "/admin/models/demo/restart")
        until(lambda: len(room.engines()) == 2, 10, "the new engine begins")
        room.admin("POST", f"/admin/models/demo/{order}", json={"drain_s": 1})
        until(lambda: room.model()["phase"] in {"absent", "off"}, 10, "all engines end")
        room.admin("POST", "/admin/models/demo/load")
        assert room.generate("x", max_new_tokens=1).status_code == 200
        until(lambda: len(room.engines()) == 1, 10, "one place, one engine")


def test_a_changed_setting_without_room_for_two_lets_requests_wait(
    make_room: RoomMaker, tmp_path: Path
) -> None:
    file = tmp_path / "engineroom.yaml"
    file.write_text("models: [{model: demo, preload: true, context: 512}]")
    room = make_room("--tps", "20", file=file, max_ram_bytes=120 << 20).start()
    with ThreadPoolExecutor(4) as many:
        answers = [many.submit(room.generate, "x", max_new_tokens=100)]
        until(lambda: room.model()["in_flight"] == 1, 10, "one runs")
        answers += [many.submit(room.generate, "x", max_new_tokens=5) for _ in range(3)]
        until(lambda: room.model()["waiting"] == 3, 10, "three wait")
        file.write_text("models: [{model: demo, preload: true, context: 256}]")
        told = room.admin("POST", "/admin/reload").json()
        assert told["changed"] == ["demo"]
        assert [each.result().status_code for each in answers] == [200] * 4
    until(lambda: _models(room)[0]["context"] == 256, 10, "the new plan serves")


def test_a_model_that_is_put_back_while_it_leaves_is_served_again(
    make_room: RoomMaker, tmp_path: Path
) -> None:
    file = tmp_path / "engineroom.yaml"
    both = "models: [{model: demo, name: a}, {model: demo, name: b}]"
    file.write_text(both)
    room = make_room("--tps", "20", file=file).start()
    with room.stream("Hi", model="b", max_new_tokens=60) as events:
        next(events)
        file.write_text("models: [{model: demo, name: a}]")
        assert room.admin("POST", "/admin/reload").json()["removed"] == ["b"]
        file.write_text(both)
        assert room.admin("POST", "/admin/reload").json()["added"] == ["b"]
        assert list(events)[-1] == "[DONE]"
    until(
        lambda: room.generate("x", model="b", max_new_tokens=1).status_code == 200, 20, "b is back"
    )


def test_who_makes_room_finishes_what_it_has_begun(make_room: RoomMaker) -> None:
    room = make_room("--tps", "10", models=two(), max_ram_bytes=150 << 20, drain_s=0.5).start()
    answers: list[int] = []
    with room.stream("Hi", model="a", max_new_tokens=90) as events:
        next(events)
        other = threading.Thread(
            target=lambda: answers.append(
                room.generate("x", model="b", max_new_tokens=1).status_code
            )
        )
        other.start()
        assert list(events)[-1] == "[DONE]"
    other.join(30 * SLACK)
    assert answers == [200]
    why = [event["detail"]["why"] for event in room.events("model.waits")]
    assert any("a is busy" in each for each in why)


def test_orders_that_make_no_sense_are_refused_and_lost_replicas_come_back(
    make_room: RoomMaker, tmp_path: Path
) -> None:
    room = make_room(replicas=2, max_ram_bytes=300 << 20).start()
    refused = room.admin("POST", "/admin/engines/gateway-0/drain")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    crowded = room.admin("POST", "/admin/models/demo/scale", json={"replicas": 9})
    assert crowded.status_code == 409
    assert "MiB needed" in crowded.json()["error"]["message"]
    assert room.admin("POST", "/admin/models/demo/sleep").status_code == 409
    room.admin("POST", "/admin/engines/demo-0/drain")
    room.wait_state("stopped", "demo-0")
    room.admin("POST", "/admin/models/demo/load")
    room.wait_state("ready", "demo-0")
    for name in ("gateway", "a/../b", "x/y"):
        file = tmp_path / "bad.yaml"
        file.write_text(f"models: [{{model: demo, name: {name}}}]")
        other = make_room(file=file, name="other")
        other.launch()
        assert other.wait_end() == 78
        assert name in other.log.read_text()
