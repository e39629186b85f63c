"""A pull that is given up: nothing of it is left, here or at the Docker Engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.docker.connection import Connection
from orchestrator.runtimes.docker.pulling import pull
from tests.harness import SLACK

_LINE = b'{"status":"Downloading","id":"a","progressDetail":{"current":1,"total":4}}\r\n'


class DockerEngine:
    """Tells one line of a pull, and then nothing more; `hung_up` when its client has gone."""

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()
        self.ends = False
        self.talks: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.talks.add(asyncio.current_task())
        while head := (await reader.read(65536)).decode():
            if "/images/create" not in head:
                body = b'{"ApiVersion":"1.41"}'
                kind = b"Content-Type: application/json\r\nContent-Length: "
                writer.write(b"HTTP/1.1 200 OK\r\n%s%d\r\n\r\n%s" % (kind, len(body), body))
                continue
            chunk = b"%x\r\n%s\r\n" % (len(_LINE), _LINE)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
            if self.ends or not await reader.read(1):
                self.hung_up.set()
                break
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[DockerEngine, Connection]]:
    engine = DockerEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = Connection({"DOCKER_HOST": f"tcp://127.0.0.1:{port}"})
    try:
        yield engine, connection
    finally:
        connection.close()
        server.close()
        await asyncio.gather(*filter(None, engine.talks))


def pulls() -> list[threading.Thread]:
    """The threads that pull."""
    return [each for each in threading.enumerate() if each.name.startswith("pull ")]


async def test_a_pull_that_is_cancelled_hangs_up() -> None:
    async with listening() as (engine, connection):
        told: asyncio.Queue[float] = asyncio.Queue()
        work = asyncio.create_task(pull(connection, "x:1", lambda _, at: told.put_nowait(at)))
        async with asyncio.timeout(10 * SLACK):
            while await told.get() == 0.0:
                pass
            work.cancel()
            await engine.hung_up.wait()
        with pytest.raises(asyncio.CancelledError):
            await work
        for thread in pulls():
            await asyncio.to_thread(thread.join, 10 * SLACK)
        assert pulls() == []


async def test_a_pull_that_is_cut_off_is_no_success() -> None:
    async with listening() as (engine, connection):
        engine.ends = True
        with pytest.raises(LaunchFailed, match="image x:1 is not here and could not be pulled"):
            async with asyncio.timeout(10 * SLACK):
                await pull(connection, "x:1", lambda what, at: None)
