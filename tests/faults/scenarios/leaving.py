"""Clients that leave: queued, before the first byte, in the middle, during the load."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from orchestrator.resources import demo_dir
from tests.faults.lab import Lab, scenario
from tests.faults.scenarios.clients import models, port_of, stats
from tests.faults.scenarios.memory import squeezed
from tests.harness import Room, look, sample, until
from tests.stage import staged
from tests.streams import request_bytes, told

LEAVERS = {  # when they leave: what they asked for, and where
    "before the first byte": ("leaver fake=" + json.dumps({"prefill_s": 20.0}), "/generate_stream"),
    "mid-stream": ("leaver", "/generate_stream"),
    "plain": ("leaver", "/generate"),
}


@scenario("F31", "fake")
def a_client_that_leaves_frees_the_engine(lab: Lab) -> None:
    with staged(["--tps", "10", "--serial"], places=1) as stage:
        engine, address = stage.engines[0], ("127.0.0.1", port_of(stage.url))
        for when, (prompt, path) in LEAVERS.items():
            with closing(socket.create_connection(address)) as leaver:
                leaver.sendall(request_bytes(prompt, path, max_new_tokens=500))
                until(lambda: engine.stats()["running"] == 1, 5, "it runs")
                if when == "mid-stream":
                    assert leaver.recv(64)
            began = time.monotonic()
            until(lambda: not engine.stats()["running"], 2, "the engine is idle")
            until(lambda: not (stage.report and stage.report.in_flight["m-0"]), 2, "the lease")
            lab.took(time.monotonic() - began)
            assert stage.ask("next", max_new_tokens=1).status_code == 200
        with stage.stream("blocker", max_new_tokens=500) as blocker:
            came = [next(blocker)]
            with closing(socket.create_connection(address)) as leaver:
                leaver.sendall(request_bytes("queued"))
                until(lambda: _waiting(stage) == 1, 5, "it waits")
            began = time.monotonic()
            until(lambda: _waiting(stage) == 0, 2, "it has left the queue")
            lab.took(time.monotonic() - began)
            came += [next(blocker) for _ in range(9)]
            assert told(came).tokens == tuple(range(10))
        assert stage.ask("next", max_new_tokens=1).status_code == 200
        assert "queued" not in engine.stats()["order"]
        left = partial(stage.metric, "engineroom_client_disconnects_total", model="m")
        until(lambda: left() == 5, 5, "each is counted, the blocker too")


def _waiting(stage: Any) -> float:
    return float(stage.metric("engineroom_waiting", model="m"))


@scenario("F31", "fake")
def clients_that_leave_during_the_load_are_forgotten(lab: Lab) -> None:
    loaded = lab.folder / "loaded"
    room = lab.make("--load-until", str(loaded))
    room.launch()
    url = f"http://127.0.0.1:{json.loads(room.command[-1])['settings']['port']}"
    until(lambda: models(room, url), 15, "the gateway knows the model")

    def waiting() -> float:
        return sample(room.http.get(f"{url}/metrics").text, "engineroom_waiting", {})

    with ExitStack() as stack:
        for _ in range(10):
            leaver = socket.create_connection(("127.0.0.1", port_of(url)))
            stack.enter_context(closing(leaver)).sendall(request_bytes("leaver"))
        until(lambda: waiting() == 10, 5, "they wait")
        began = time.monotonic()
    until(lambda: waiting() == 0, 2, "they are forgotten")
    lab.took(time.monotonic() - began)
    loaded.touch()
    asked = room.http.post(f"{url}/generate", json={"prompt": "x", "max_new_tokens": 1})
    assert asked.json()["token_count"] == 1
    room.wait_ready()
    assert "leaver" not in stats(room)["order"]


END = json.loads((demo_dir() / "config.json").read_text())["eos_token_id"]
UNENDING: dict[str, Any] = {"logit_bias": {str(END): -100}}
# Of each engine's own metrics: what it works on, and what waits in it.
WORK = {
    "llama_server": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
}


@scenario("F31", "llama_server", "vllm", also=("F13",))
def clients_that_leave_free_a_real_engine_and_then_memory_is_gone(lab: Lab) -> None:
    """More of them than the engine has places, so that some leave from the queue."""
    room = lab.make("--users", "4")
    room.launch()
    url = f"http://127.0.0.1:{room.command[room.command.index('--port') + 1]}"
    until(lambda: models(room, url), 30, "the gateway knows the model")
    crowd, long = 24, "Tell me a long story about the shop. "

    def all_there() -> bool:
        """Whether the gateway has read every request: who leaves before that asked nothing."""
        text = room.http.get(f"{url}/metrics").text
        held = ("engineroom_in_flight", "engineroom_waiting")
        return sum(sample(text, name, {}) for name in held) == crowd

    _come_and_go(url, crowd, long, all_there)
    until(lambda: not _gauge(room, url, "engineroom_waiting"), 2, "the queue is empty")
    until(partial(_counted, room, url, crowd), 5, "each is counted")
    room.wait_ready(400)
    own = f"{room.engine()['url']}/metrics"
    # What an engine meets for the first time it may compile for, and then hears of nobody leaving.
    first = {"prompt": long * 40, "max_tokens": 2, **UNENDING}
    assert room.http.post(f"{url}/v1/completions", json=first).status_code == 200

    def working() -> float:
        text = look(own).text
        return sum(sample(text, name, {}) for name in WORK[lab.engine])

    for prompt, stream in ((long * 40, True), (long, True), (long, False)):
        before = _gauge(room, url, "engineroom_client_disconnects_total")
        read = False

        def ready() -> bool:
            nonlocal read  # a request may be over before the engine tells that it works
            read = read or all_there()
            return read and working() > 0

        began = _come_and_go(url, crowd, prompt, ready, stream=stream)
        until(lambda: not room.engine()["in_flight"], 5, "the leases are given back")
        until(lambda: not working(), 5, "the engine is idle")
        lab.took(time.monotonic() - began)
        until(partial(_counted, room, url, before + crowd), 5, "each is counted")
        assert room.generate("next", max_new_tokens=1).status_code == 200
    squeezed(lab, room)


def _counted(room: Room, url: str, leavers: float) -> bool:
    return _gauge(room, url, "engineroom_client_disconnects_total") == leavers


def _come_and_go(
    url: str, crowd: int, prompt: str, when: Callable[[], object], **fields: Any
) -> float:
    """Clients that ask for much and leave together; the clock at which they did."""
    body = request_bytes(prompt, "/v1/completions", max_tokens=1000, **UNENDING, **fields)
    with ExitStack() as stack:
        for _ in range(crowd):
            leaver = socket.create_connection(("127.0.0.1", port_of(url)))
            stack.enter_context(closing(leaver)).sendall(body)
        until(when, 20, "they are all there")
        return time.monotonic()


def _gauge(room: Room, url: str, name: str) -> float:
    return sample(room.http.get(f"{url}/metrics").text, name, {})
