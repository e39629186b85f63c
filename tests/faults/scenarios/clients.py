"""Faults of clients: too many, too slow, gone."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from orchestrator.resources import demo_dir
from tests.faults.lab import Lab, percentile, scenario
from tests.harness import Room, sample, until
from tests.stage import staged
from tests.streams import Answer, ask, check_stream, parse, request_bytes


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


# --- a herd before a cold model -----------------------------------------------------------------


@scenario("F29", "fake")
def a_herd_waits_for_one_launch(lab: Lab) -> None:
    """500 at once while the model loads: 300 may wait and are served in their order."""
    crowd, places = 500, 300
    with tempfile.TemporaryDirectory() as folder:
        loaded = Path(folder) / "loaded"
        room = lab.make("--load-until", str(loaded), max_queue=places)
        room.launch()
        url = f"http://127.0.0.1:{json.loads(room.command[-1])['settings']['port']}"
        until(lambda: _models(room, url), 15, "the gateway knows the model")
        answers = asyncio.run(_herd(port_of(url), crowd, crowd - places, loaded.touch))
        room.wait_ready()
    codes = Counter(each.status for each in answers)
    assert codes == {200: places, 429: crowd - places}, codes
    refused = [each for each in answers if each.status == 429]
    assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
    lab.took(percentile([each.seconds for each in refused], 0.99))
    served = [i for i, each in enumerate(answers) if each.status == 200]
    assert served == list(range(places))
    order = _stats(room)["order"]
    assert [int(each[1:]) for each in order if each.startswith("n")] == served
    assert (room.engine()["generation"], room.engine()["restarts"]) == (1, 0)


async def _herd(port: int, crowd: int, refused: int, load: Callable[[], object]) -> list[Answer]:
    """Connections first, then the requests one after another: the order is known.

    The model is loaded when as many as have to be are refused.
    """
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(crowd)]
    sent: list[float] = []
    for i, (_, writer) in enumerate(pairs):
        sent.append(time.monotonic())
        writer.write(request_bytes(f"n{i}", max_new_tokens=1))
        await asyncio.sleep(0)

    async def answer(i: int) -> Answer:
        raw = await pairs[i][0].read()
        pairs[i][1].close()
        return parse(raw, time.monotonic() - sent[i])

    waiting = {asyncio.ensure_future(answer(i)): i for i in range(crowd)}
    done: set[asyncio.Future[Answer]] = set()
    while len(done) < refused:
        some, _ = await asyncio.wait(set(waiting) - done, return_when=asyncio.FIRST_COMPLETED)
        done |= some
    load()
    return list(await asyncio.gather(*waiting))


def _models(room: Room, url: str) -> bool:
    try:
        return bool(room.http.get(f"{url}/health").json()["models"])
    except httpx.TransportError:
        return False


def _stats(room: Room) -> dict[str, Any]:
    return dict(httpx.get(f"{room.engine()['url']}/stats", trust_env=False).json())


# --- more than can be served --------------------------------------------------------------------


@scenario("F30", "fake")
def overload_is_refused_at_once_and_costs_no_throughput(lab: Lab) -> None:
    """8 places of 0.5 s each are 16 requests/s; five times that arrives for 3 s."""
    places, rate, seconds = 8, 80, 3
    with staged(["--tps", "10"], places=places, max_queue=16, queue_timeout_s=10) as stage:
        answers = asyncio.run(_open_loop(port_of(stage.url), rate, seconds))
        codes = Counter(each.status for each in answers)
        assert set(codes) == {200, 429}, codes
        worst: list[float] = []
        for second in range(seconds):  # one burst of another program's work spoils one of them
            asked = answers[second * rate : (second + 1) * rate]
            refused = [each for each in asked if each.status == 429]
            assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
            worst.append(percentile([each.seconds for each in refused], 0.99))
        lab.took(median(worst))
        # While requests come all places are taken, then those that wait are served.
        assert codes[200] >= 0.9 * places * seconds / 0.5, codes
        began = time.monotonic()
        assert stage.ask("after", max_new_tokens=1).status_code == 200
        assert time.monotonic() - began < 1


async def _open_loop(port: int, rate: float, seconds: float) -> list[Answer]:
    """Requests at a steady rate, whatever becomes of those before."""
    began = time.monotonic()
    asked: list[asyncio.Task[Answer]] = []
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + i / rate - time.monotonic()))
        asked.append(asyncio.create_task(ask(port, request_bytes(f"n{i}", max_new_tokens=6))))
    return list(await asyncio.gather(*asked))


# --- no file descriptors ------------------------------------------------------------------------


@scenario("F24", "fake")
def without_file_descriptors_it_says_so_and_recovers(lab: Lab) -> None:
    with staged([]) as stage, ExitStack() as stack:
        gateway = psutil.Process(stage.process.pid)
        hard = gateway.rlimit(psutil.RLIMIT_NOFILE)[1]
        with stage.stream("Hi fake=" + json.dumps({"tps": 8.0}), max_new_tokens=24) as events:
            came = [next(events)]
            gateway.rlimit(psutil.RLIMIT_NOFILE, (64, hard))
            address = ("127.0.0.1", port_of(stage.url))
            idle = [stack.enter_context(socket.create_connection(address)) for _ in range(90)]
            until(lambda: gateway.num_fds() >= 60, 5, "descriptors are gone")
            busy = gateway.cpu_times()
            came += list(events)  # three seconds: what runs goes on
        spent = sum(gateway.cpu_times()[:2]) - sum(busy[:2])
        assert spent < 0.2 * 3, f"{spent} s of processor time"
        check_stream(came, 24)
        refused = stage.ask()  # the client's old connection still stands
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_busy")
        assert "retry-after" in refused.headers
        for each in idle:
            each.close()
        gateway.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
        began = time.monotonic()
        assert httpx.post(
            f"{stage.url}/generate", json={"prompt": "x", "max_new_tokens": 1}, trust_env=False
        ).json()["token_count"] == 1  # fmt: skip
        lab.took(time.monotonic() - began)
        assert stage.failed == []


# --- readers that do not read -------------------------------------------------------------------


@scenario("F32", "fake")
def readers_that_stop_cost_no_memory_and_nobody_else(lab: Lab) -> None:
    """Six that read nothing, six that read a byte now and then; the write timeout is 2 s."""
    readers = 6
    with staged(["--tps", "200"], places=64, write_timeout_s=2) as stage, ExitStack() as stack:
        gateway = psutil.Process(stage.process.pid)
        assert stage.ask().status_code == 200
        before = gateway.memory_info().rss
        body = request_bytes("echo=" + "x" * 2000, "/generate_stream", max_new_tokens=100_000)
        slow = [stack.enter_context(_small_reader(stage.url)) for _ in range(2 * readers)]
        for each in slow:
            each.sendall(body)
        began = time.monotonic()
        running = stage.engines[0].stats
        until(lambda: running()["requests"] > 2 * readers, 10, "all run")
        done = threading.Event()
        sipping = threading.Thread(target=_sip, args=(slow[:readers], done))
        sipping.start()
        worst = 0
        while running()["running"] and time.monotonic() - began < 15:
            with stage.stream("Hi", max_new_tokens=20) as events:
                asked = time.monotonic()
                check_stream(list(events), 20)
            assert time.monotonic() - asked < 2
            worst = max(worst, gateway.memory_info().rss)
        done.set()
        sipping.join()
        assert running()["running"] == 0
        assert worst - before < 60 << 20, f"{(worst - before) >> 20} MiB more"
        assert stage.metric("engineroom_slow_clients_total") == 2 * readers
        until(lambda: gateway.num_fds() < 30, 5, "their connections are closed")
        lab.took(time.monotonic() - began)


def _small_reader(url: str) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port_of(url)))
    return made


def _sip(readers: list[socket.socket], done: threading.Event) -> None:
    while not done.wait(0.2):
        for each in readers:
            with suppress(OSError):
                each.recv(1)


# --- clients that leave -------------------------------------------------------------------------

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
        with stage.stream("blocker", max_new_tokens=10) as blocker:
            came = [next(blocker)]
            with closing(socket.create_connection(address)) as leaver:
                leaver.sendall(request_bytes("queued"))
                until(lambda: _waiting(stage) == 1, 5, "it waits")
            began = time.monotonic()
            until(lambda: _waiting(stage) == 0, 2, "it has left the queue")
            lab.took(time.monotonic() - began)
            check_stream([*came, *blocker], 10)
        assert "queued" not in engine.stats()["order"]
        assert stage.metric("engineroom_client_disconnects_total", model="m") == 4


def _waiting(stage: Any) -> float:
    return float(stage.metric("engineroom_waiting", model="m"))


@scenario("F31", "fake")
def clients_that_leave_during_the_load_are_forgotten(lab: Lab) -> None:
    room = lab.make("--load-s", "2")
    room.launch()
    url = f"http://127.0.0.1:{json.loads(room.command[-1])['settings']['port']}"
    until(lambda: _models(room, url), 15, "the gateway knows the model")

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
    assert room.http.post(f"{url}/generate", json={"prompt": "x", "max_new_tokens": 1}).json()
    room.wait_ready()
    assert "leaver" not in _stats(room)["order"]


END = json.loads((demo_dir() / "config.json").read_text())["eos_token_id"]
UNENDING: dict[str, Any] = {"logit_bias": {str(END): -100}}
# Of each engine's own metrics: what it works on, and what waits in it.
WORK = {
    "llama_server": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
}


@scenario("F31", "llama_server", "vllm")
def clients_that_leave_free_a_real_engine(lab: Lab) -> None:
    """More of them than the engine has places, so that some leave from the queue."""
    room = lab.make("--users", "4")
    room.launch()
    url = f"http://127.0.0.1:{room.command[room.command.index('--port') + 1]}"
    until(lambda: _models(room, url), 30, "the gateway knows the model")
    crowd, long = 24, "Tell me a long story about the shop. "

    def all_there() -> bool:
        """Whether the gateway has read every request: who leaves before that asked nothing."""
        held = ("engineroom_in_flight", "engineroom_waiting")
        return sum(_gauge(room, url, name) for name in held) == crowd

    _come_and_go(url, crowd, long, all_there)
    until(lambda: not _gauge(room, url, "engineroom_waiting"), 2, "the queue is empty")
    room.wait_ready(400)
    own = f"{room.engine()['url']}/metrics"
    # What an engine meets for the first time it may compile for, and then hears of nobody leaving.
    first = {"prompt": long * 40, "max_tokens": 2, **UNENDING}
    assert room.http.post(f"{url}/v1/completions", json=first).status_code == 200

    def working() -> float:
        text = httpx.get(own, trust_env=False).text
        return sum(sample(text, name, {}) for name in WORK[lab.engine])

    for prompt, stream in ((long * 40, True), (long, True), (long, False)):
        before = _gauge(room, url, "engineroom_client_disconnects_total")
        began = _come_and_go(url, crowd, prompt, lambda: all_there() and working(), stream=stream)
        until(lambda: not room.engine()["in_flight"], 5, "the leases are given back")
        until(lambda: not working(), 5, "the engine is idle")
        lab.took(time.monotonic() - began)
        until(partial(_counted, room, url, before + crowd), 5, "each is counted")
        assert room.generate("next", max_new_tokens=1).status_code == 200


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
