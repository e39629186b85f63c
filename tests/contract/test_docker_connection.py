"""The connection to a Docker Engine that is not as it should be; none is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine_launchers.base import LaunchSpec
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import ContainerHold, HandleRecord
from orchestrator.runtimes.docker.connection import Away, Connection, Stream
from orchestrator.runtimes.docker.handle import ContainerHandle
from orchestrator.runtimes.docker.logs import Follower
from orchestrator.runtimes.docker.watcher import Watcher
from orchestrator.runtimes.shim.output import Output
from tests.harness import eventually, within


class Server:
    """Listens for requests; answers with `body`, or never."""

    def __init__(self, body: object = None) -> None:
        self.body, self.asked, self.open = body, list[str](), list[asyncio.StreamWriter]()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append(writer)
        while line := await reader.readline():
            if b" HTTP/" in line:
                self.asked.append(line.decode().split()[1])
            elif line == b"\r\n" and self.body is not None:
                text = json.dumps(self.body).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n"
                writer.write(head.encode() + text)

    async def close(self) -> None:
        for each in self.open:
            each.close()


@asynccontextmanager
async def listening(body: object = None) -> AsyncIterator[Server]:
    made = Server(body)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        await made.close()
        server.close()
        await server.wait_closed()


@pytest.fixture
async def silent() -> AsyncIterator[Server]:
    async with listening() as server:
        yield server


@pytest.fixture
async def engine() -> AsyncIterator[Server]:
    async with listening({"ApiVersion": "1.41"}) as server:
        yield server


def to(server: Server) -> Connection:
    return Connection({"DOCKER_HOST": f"tcp://127.0.0.1:{server.port}"})


async def test_closing_waits_for_nobody(silent: Server) -> None:
    connection = to(silent)
    calls = [asyncio.create_task(connection.call(lambda c: c.info())) for _ in range(4)]
    await eventually(lambda: len(silent.asked) == 4, 5, "all of them wait for an answer")
    with within(0.2, "it is closed"):
        connection.close()
    await silent.close()
    for call in calls:
        with pytest.raises(LaunchFailed):
            await call


async def test_one_that_is_closed_stays_closed(engine: Server) -> None:
    connection = to(engine)
    connection.close()
    with pytest.raises(Away, match="is closed"), connection.asking():
        pass
    assert engine.asked == []


async def test_letting_go_of_a_container_waits_for_nobody(silent: Server, tmp_path: Path) -> None:
    connection = to(silent)
    watcher = Watcher(connection, "abc", lambda type, subject, **told: None, 300)
    follower = Follower(connection, "id", Output(str(tmp_path / "log"), 1000, 1), tmp_path)
    hold = ContainerHold(container="name", id="id")
    record = HandleRecord(
        name="m-0",
        generation=1,
        spec=LaunchSpec(argv=("x",)),
        hold=hold,
        folder=tmp_path,
        log=tmp_path / "log",
    )
    handle = ContainerHandle(record, "name", "id", connection, watcher, follower)
    await eventually(lambda: len(silent.asked) >= 2, 5, "the log, and the events, are asked for")
    with within(0.2, "it is let go"):
        handle.detach()
    await silent.close()
    await watcher.close()
    connection.close()
    await asyncio.to_thread(follower.join)
    assert not follower.alive


async def test_no_proxy_is_asked(
    engine: Server, silent: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{silent.port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    connection = to(engine)
    assert await connection.call(lambda c: c.info()) == {"ApiVersion": "1.41"}
    assert engine.asked == ["/version", "/v1.41/info"]
    assert silent.asked == []
    connection.close()


async def test_a_wrong_question_is_not_an_engine_that_is_away(engine: Server) -> None:
    connection = to(engine)
    with pytest.raises(LaunchFailed, match="esource ID") as caught:
        await connection.call(lambda c: c.inspect_container(""))
    assert not isinstance(caught.value, Away)
    connection.close()


@pytest.mark.parametrize("version", ["1.2", "0.9"])
async def test_an_engine_that_is_too_old_is_not_away(version: str) -> None:
    async with listening({"ApiVersion": version}) as old:
        connection = to(old)
        with pytest.raises(LaunchFailed, match="no longer supported") as caught:
            await connection.call(lambda c: c.info())
        assert not isinstance(caught.value, Away)
        connection.close()


async def test_an_answer_that_was_cut_is_one_that_is_away(silent: Server) -> None:
    connection = to(silent)
    call = asyncio.create_task(connection.call(lambda c: c.info()))
    await eventually(lambda: silent.open, 5, "it is asked")
    silent.open[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
    await silent.close()
    with pytest.raises(Away, match="does not answer"):
        await call
    connection.close()


class Tape:
    """A stream that notes its end."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_stream_that_comes_after_its_end_is_ended_at_once() -> None:
    before, after, stream = Tape(), Tape(), Stream()
    stream.through(before)
    assert not before.closed
    stream.end()
    assert before.closed
    stream.through(after)
    assert after.closed
