"""Faults of clients: too many, too slow, gone."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from tests.faults.lab import Lab, percentile, scenario
from tests.harness import Room, look, until, within
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
        until(lambda: models(room, url), 15, "the gateway knows the model")
        answers = asyncio.run(_herd(port_of(url), crowd, crowd - places, loaded.touch))
        room.wait_ready()
    codes = Counter(each.status for each in answers)
    assert codes == {200: places, 429: crowd - places}, codes
    refused = [each for each in answers if each.status == 429]
    assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
    lab.took(percentile([each.seconds for each in refused], 0.99))
    served = [i for i, each in enumerate(answers) if each.status == 200]
    assert served == list(range(places))
    order = stats(room)["order"]
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


def models(room: Room, url: str) -> bool:
    try:
        return bool(room.http.get(f"{url}/health").json()["models"])
    except httpx.TransportError:
        return False


def stats(room: Room) -> dict[str, Any]:
    return dict(look(f"{room.engine()['url']}/stats").json())


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
        with within(1, "the next one is served"):
            assert stage.ask("after", max_new_tokens=1).status_code == 200


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
            busy, since = gateway.cpu_times(), time.monotonic()
            came += list(events)  # three seconds: what runs goes on
        spent = sum(gateway.cpu_times()[:2]) - sum(busy[:2])
        passed = time.monotonic() - since
        assert spent < 0.2 * passed, f"{spent} s of processor time in {passed} s"
        check_stream(came, 24)
        refused = stage.ask()  # the client's old connection still stands
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_busy")
        assert "retry-after" in refused.headers
        for each in idle:
            each.close()
        gateway.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
        began = time.monotonic()
        with httpx.Client(trust_env=False, timeout=60) as another:
            body = {"prompt": "x", "max_new_tokens": 1}
            assert another.post(f"{stage.url}/generate", json=body).json()["token_count"] == 1
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
        worst = 0

        def over() -> bool:
            """Whether the engine has lost all of them; another client is served meanwhile."""
            nonlocal worst
            with stage.stream("Hi", max_new_tokens=20) as events, within(2, "another client"):
                check_stream(list(events), 20)
            worst = max(worst, gateway.memory_info().rss)
            return not running()["running"]

        with _sipping(slow[:readers]):
            until(over, 15, "all of them are cut off")
        assert worst - before < 60 << 20, f"{(worst - before) >> 20} MiB more"
        slow_ones = partial(stage.metric, "engineroom_slow_clients_total")
        until(lambda: slow_ones() == 2 * readers, 5, "each is counted")
        until(lambda: gateway.num_fds() < 30, 5, "their connections are closed")
        lab.took(time.monotonic() - began)


def _small_reader(url: str) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port_of(url)))
    return made


@contextmanager
def _sipping(readers: list[socket.socket]) -> Iterator[None]:
    """Each of them reads a byte now and then."""
    done = threading.Event()

    def sip() -> None:
        while not done.wait(0.2):
            for each in readers:
                with suppress(OSError):
                    each.recv(1, socket.MSG_DONTWAIT)

    sipping = threading.Thread(target=sip)
    sipping.start()
    try:
        yield
    finally:
        done.set()
        sipping.join()
