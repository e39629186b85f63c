"""The way from a client's socket to an engine's and back, with both ends in this process."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from engine_launchers.vllm import VllmLauncher
from orchestrator import __version__
from orchestrator.control import GatewayConfig, ModelRoute, Replica, RouteTable
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.workers.team import Alone
from tests.harness import eventually, sample

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(*payloads: bytes) -> bytes:
    events = [b"data: " + each + b"\n\n" for each in payloads]
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in events)


def token(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return json.dumps({"id": "i", "model": "m", "choices": [choice]}).encode()


ANSWER = HEAD + framed(token("a"), token("b"), token("c", "stop"), b"[DONE]") + b"0\r\n\r\n"


class Engine:
    """A server that does with each request what the test says; counts connections and requests."""

    def __init__(self, answer: Callable[[Engine, asyncio.StreamWriter], Any]) -> None:
        self._answer = answer
        self.connections = self.requests = self.lost = 0
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
                self.requests += 1
                self.heads.append(head)
                if await self._answer(self, writer) is False:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.lost += 1
        finally:
            writer.close()


@asynccontextmanager
async def between(
    answer: Callable[[Engine, asyncio.StreamWriter], Any], **config: Any
) -> AsyncIterator[tuple[Engine, int, Gateway]]:
    """The engine, the gateway's port, and the gateway."""
    engine = Engine(answer)
    upstream = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    given: dict[str, Any] = {
        "version": __version__, "name": "g", "host": "127.0.0.1", "port": 0,
        "control_socket": None, "max_queue": 100, "queue_timeout_s": 10,
        "max_body_bytes": 1 << 20, "stall_timeout_s": 5, "write_timeout_s": 5, "log_level": "info",
    }  # fmt: skip
    gateway = Gateway(GatewayConfig(**{**given, **config}), Alone())
    replica = Replica(
        id="m-0", generation=1, accepting=True, max_concurrency=64,
        base_url=f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}",
    )  # fmt: skip
    route = ModelRoute(
        name="m", state="ready", engine="vllm", context=4096, created=0, replicas=(replica,),
        routes=VllmLauncher.routes, quirks=VllmLauncher.quirks,
    )  # fmt: skip
    gateway.router.apply(RouteTable(version=1, models=(route,)))
    settings, state = Config(app=gateway.app, lifespan="off"), ServerState()
    settings.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: gateway.protocol(config=settings, server_state=state, app_state={}), "127.0.0.1", 0
    )
    gateway.desk.watch.start()
    try:
        yield engine, server.sockets[0].getsockname()[1], gateway
    finally:
        gateway.desk.watch.stop()
        for client in list(gateway.connections.all):
            client.close()
        gateway.pool.close()
        server.close()
        upstream.close()
        await asyncio.sleep(0)  # their connections are told


def request(stream: bool, path: str = "/v1/completions", more: str = "") -> bytes:
    body = json.dumps({"prompt": "Hi", "max_tokens": 3, "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


async def whole(engine: Engine, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)


async def ask(port: int, times: int, stream: bool = False, more: str = "") -> list[bytes]:
    """Answers over one connection, each read to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    for _ in range(times):
        writer.write(request(stream, more=more))
        head = await reader.readuntil(b"\r\n\r\n")
        if b"chunked" in head:
            answers.append(head + await reader.readuntil(b"0\r\n\r\n"))
        else:
            size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            answers.append(head + await reader.readexactly(size))
    writer.close()
    await writer.wait_closed()
    return answers


def counted(gateway: Gateway, name: str) -> float:
    return sample(gateway.metrics.render().decode(), name, {})


async def test_one_connection_to_the_engine_serves_one_client_after_another() -> None:
    async with between(whole) as (engine, port, _):
        plain = await ask(port, 20)
        streams = await ask(port, 20, stream=True)
        assert (engine.requests, engine.connections) == (40, 1)
    assert all(b'"text":"abc"' in each for each in plain)
    assert all(each.count(b"data: ") == 4 and b"[DONE]" in each for each in streams)


async def test_requests_leave_nothing_to_the_garbage_collector() -> None:
    async with between(whole) as (_, port, _gateway):
        await ask(port, 3)
        await ask(port, 3, stream=True)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await ask(port, 30)
            await ask(port, 30, stream=True)
            gc.collect()
            left = [type(each) for each in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    ours = [each for each in left if each.__module__.startswith("orchestrator")]
    assert [each for each in ours if each.__name__ != "ClientProtocol"] == []


async def test_a_kept_connection_that_has_died_costs_nobody_anything() -> None:
    async def and_close(engine: Engine, writer: asyncio.StreamWriter) -> bool:
        """The second request on a connection is not read: it had been closed."""
        if engine.requests == 2:
            return False
        writer.write(ANSWER)
        return True

    async with between(and_close) as (engine, port, gateway):
        answers = await ask(port, 2)
        assert [each[:12] for each in answers] == [b"HTTP/1.1 200"] * 2
        assert (engine.requests, engine.connections) == (3, 2)
        assert counted(gateway, "engineroom_retries_total") == 0
        assert counted(gateway, "engineroom_upstream_errors_total") == 0


async def test_a_new_connection_that_dies_is_the_engines_failure() -> None:
    async def never(engine: Engine, writer: asyncio.StreamWriter) -> bool:
        return False

    async with between(never) as (engine, port, _):
        (answer,) = await ask(port, 1)
        assert b"engine_died" in answer
        assert engine.requests == 1


DEEP = b'{"x":' + b"[" * 500 + b"]" * 500 + b',"model":"n","choices":[{"text":"a"}]}'
ODD_CALLS = b'{"choices":[{"delta":{"content":"a","tool_calls":[1]},"finish_reason":"stop"}]}'


@pytest.mark.parametrize("payload", [DEEP, ODD_CALLS])
async def test_odd_json_of_an_engine_is_its_failure_and_hangs_nobody(payload: bytes) -> None:
    async def odd(engine: Engine, writer: asyncio.StreamWriter) -> None:
        last = framed(payload, token("", "stop"), b"[DONE]")
        writer.write(HEAD + last + b"0\r\n\r\n")

    async with between(odd) as (_, port, gateway):
        stream = payload is DEEP  # passed on it would have to be written anew
        (answer,) = await ask(port, 1, stream=stream)
        assert b"upstream_invalid" in answer
        assert gateway.router.in_flight() == {"m-0": 0}


async def test_idle_connections_are_closed_before_the_engine_would() -> None:
    async with between(whole) as (engine, port, gateway):
        await ask(port, 1)
        assert gateway.pool.count == 1
        await eventually(lambda: gateway.pool.count == 0, 5, "it is closed")
        await eventually(lambda: engine.lost == 1, 5, "the engine knows")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_closes_the_engines_connection_at_once(stream: bool) -> None:
    held = asyncio.Event()

    async def hold(engine: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + framed(token("a")))
        held.set()

    async with between(hold) as (engine, port, gateway):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(stream))
        await held.wait()
        writer.transport.abort()
        await eventually(lambda: engine.lost == 1, 1, "the engine knows")
        assert gateway.router.in_flight() == {"m-0": 0}


async def test_a_slow_reader_holds_the_engine_back_and_its_connection_is_lent_unpaused() -> None:
    large = HEAD + framed(*[token("x" * 1000)] * 4000, token("", "stop"), b"[DONE]") + b"0\r\n\r\n"

    async def much(engine: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(large)
        await writer.drain()

    async with between(much) as (engine, port, gateway):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
        writer.write(request(stream=True))
        await eventually(lambda: engine.requests == 1, 5, "it is asked")
        got = await reader.readexactly(1000)
        assert gateway.router.in_flight() == {"m-0": 1}
        got += await reader.readuntil(b"x")
        while not got.endswith(b"0\r\n\r\n"):
            got = got[-10:] + await reader.read(1 << 16)
        assert gateway.router.in_flight() == {"m-0": 0}
        writer.close()
        answers = await ask(port, 1)
        assert b'"finish_reason":"stop"' in answers[0]
        assert engine.connections == 1
