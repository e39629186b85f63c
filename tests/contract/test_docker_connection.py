"""The connection to a Docker Engine that is not as it should be; none is needed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine_launchers.base import LaunchSpec
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import ContainerHold, HandleRecord
from orchestrator.runtimes.docker.connection import Away, Connection, Refused
from orchestrator.runtimes.docker.handle import ContainerHandle
from orchestrator.runtimes.docker.logs import Follower
from orchestrator.runtimes.docker.streams import Stream
from orchestrator.runtimes.docker.watcher import Watcher
from orchestrator.runtimes.shim.output import Output
from tests.harness import eventually, within


class Server:
    """Listens for requests; answers with `body`, or never."""

    def __init__(self, body: object = None, later: str = "200 OK") -> None:
        self.status, self.later = "200 OK", later  # of the first answer, and of all others
        self.body, self.asked, self.open = body, list[str](), list[asyncio.StreamWriter]()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append(writer)
        while line := await reader.readline():
            if b" HTTP/" in line:
                self.asked.append(line.decode().split()[1])
            elif line == b"\r\n" and self.body is not None:
                text = json.dumps(self.body).encode()
                head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(text)}\r\n\r\n"
                writer.write(head.encode() + text)
                self.status = self.later

    async def close(self) -> None:
        for each in self.open:
            each.close()


@asynccontextmanager
async def listening(body: object = None, later: str = "200 OK") -> AsyncIterator[Server]:
    made = Server(body, later)
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


def holding(connection: Connection, watcher: Watcher, folder: Path) -> ContainerHandle:
    """The handle of a container, whether there is one or not."""
    record = HandleRecord(
        name="m-0",
        generation=1,
        spec=LaunchSpec(argv=("x",)),
        hold=ContainerHold(container="name", id="id"),
        folder=folder / "launch",
        log=folder / "log",
    )
    record.folder.mkdir()
    follower = Follower(connection, "id", Output(str(record.log), 1000, 1), record.folder)
    return ContainerHandle(record, connection, watcher, follower)


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
    handle = holding(connection, watcher, tmp_path)
    await eventually(lambda: len(silent.asked) >= 2, 5, "the log, and the events, are asked for")
    with within(0.2, "it is let go"):
        handle.detach()
    await silent.close()
    await watcher.close()
    connection.close()


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


async def test_a_proxy_that_does_not_reach_its_engine_is_one_that_is_away() -> None:
    told = {"ApiVersion": "1.41", "message": "the socket cannot be used: set DOCKER_GID"}
    async with listening(told, later="503 Service Unavailable") as proxy:
        connection = to(proxy)
        with pytest.raises(Away, match="the socket cannot be used: set DOCKER_GID"):
            await connection.call(lambda c: c.info())
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


# --- faults of ours: none of them may end the watch ---------------------------------------------


class Client:
    """Fails once at all that it is asked, unforeseen; has one container until it is killed."""

    def __init__(self) -> None:
        self.failed, self.ended = set[str](), threading.Event()

    def fail(self, what: str) -> None:
        if what not in self.failed:
            self.failed.add(what)
            raise KeyError(what)

    def containers(self, **_: object) -> list[dict[str, Any]]:
        self.fail("containers")
        running = {"Id": "id", "Names": ["/name"], "State": "running"}
        return [] if self.ended.is_set() else [running]

    def inspect_container(self, id: str) -> dict[str, Any]:
        self.fail("inspect")
        if self.ended.is_set():
            raise Refused("no such container", 404)
        return {"State": {"Running": True}}

    def events(self, **_: object) -> Client:
        self.fail("events")
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.fail("reading")
        yield {"id": "id", "Action": "die", "Actor": {"Attributes": {"exitCode": "3"}}}
        self.ended.wait(20)

    def kill(self, id: str, signal: str) -> None:
        self.fail(signal)
        self.ended.set()

    def remove_container(self, id: str, **_: object) -> None:
        self.fail("remove")

    def logs(self, id: str, **_: object) -> list[bytes]:
        self.fail("logs")
        return [b"2026-01-01T00:00:00.000000001Z last words\n"]

    def close(self) -> None:
        self.ended.set()


class Broken(Connection):
    """To a Client."""

    def __init__(self) -> None:
        super().__init__({})
        self.client = Client()

    def _connected(self) -> Client:
        return self.client


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("watcher._LOOK_S", "watcher._AWAY_S", "handle._AGAIN_S", "logs._AGAIN_S"):
        monkeypatch.setattr(f"orchestrator.runtimes.docker.{name}", 0.02)


@pytest.mark.usefixtures("quick")
async def test_no_fault_keeps_an_end_from_being_told(tmp_path: Path) -> None:
    def tell(type: str, subject: str, **told: object) -> None:
        raise ValueError("a full disk, say")

    connection = Broken()
    watcher = Watcher(connection, "abc", tell, 300)
    handle = holding(connection, watcher, tmp_path)
    with within(3, "it is told"):
        await handle.stop(0)
    every = {"containers", "inspect", "events", "reading", "logs", "SIGKILL", "remove"}
    await eventually(lambda: connection.client.failed == every, 5, "all went wrong once")
    assert (tmp_path / "log").read_text() == "last words\n"
    await watcher.close()
    connection.close()


@pytest.mark.usefixtures("quick")
async def test_a_fault_of_the_holders_ear_is_no_fault_of_the_watch() -> None:
    told = list[str]()

    def tell(type: str, subject: str, **_: object) -> None:
        told.append(type)
        raise ValueError("a full disk, say")

    connection = Broken()
    watcher = Watcher(connection, "abc", tell, 0)
    row = {"Id": "id", "Names": ["/stranger"], "State": "running"}
    connection.client.containers = lambda **_: [row]  # type: ignore[method-assign]
    watcher.open()
    await eventually(lambda: len(told) >= 2, 5, "it is looked at again")
    await watcher.close()
    connection.close()


async def test_a_second_holder_takes_the_place_of_the_first(silent: Server) -> None:
    connection = to(silent)
    watcher = Watcher(connection, "abc", lambda type, subject, **told: None, 300)
    first, second = watcher.hold("name", "id"), watcher.hold("name", "id")
    assert first.cancelled()
    assert not second.done()
    await silent.close()
    await watcher.close()
    connection.close()


async def test_a_kill_for_memory_is_known_before_its_container_is_held(silent: Server) -> None:
    connection = to(silent)
    watcher = Watcher(connection, "abc", lambda type, subject, **told: None, 300)
    watcher.claim("name")
    for name in ("name", "stranger"):
        about = {"ID": "id", "Attributes": {"name": name}}
        watcher._heard({"id": "id", "Action": "oom", "timeNano": 10**18, "Actor": about})
    watcher.hold("name", "id")
    assert watcher._since("id", "2001-09-09T01:46:43.500000000Z") == 3.5
    assert watcher._since("another") is None
    watcher.release("name")
    assert watcher._killed == {}
    await silent.close()
    await watcher.close()
    connection.close()
