"""What a service manager is told, over a real socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.notify import Manager


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def test_one_datagram_per_message_and_a_line_per_fact(heard: socket.socket) -> None:
    manager = Manager({"NOTIFY_SOCKET": heard.getsockname()})
    manager.ready("serves demo\non port 8001")
    manager.stopping("ends")
    assert heard.recv(4096) == b"READY=1\nSTATUS=serves demo on port 8001"
    assert heard.recv(4096) == b"STOPPING=1\nSTATUS=ends"


def test_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0engineroom-test-{os.getpid()}")
        listener.settimeout(5)
        Manager({"NOTIFY_SOCKET": f"@engineroom-test-{os.getpid()}"}).ready("serves")
        assert listener.recv(4096).startswith(b"READY=1")


@pytest.mark.parametrize("place", ["/nowhere/notify", "vsock:2:1", "relative"])
def test_a_manager_that_cannot_be_reached_is_logged_once(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Manager({"NOTIFY_SOCKET": place})
    with caplog.at_level(logging.ERROR, "engineroom"):
        manager.ready("serves")
        manager.stopping("ends")
    assert [place in each.message for each in caplog.records] == [True]


async def test_signs_of_life_come_twice_within_the_limit(heard: socket.socket) -> None:
    heard.setblocking(False)
    loop = asyncio.get_running_loop()
    env = {"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "200000"}
    beating = asyncio.create_task(Manager({**env, "WATCHDOG_PID": str(os.getpid())}).keep_alive())
    async with asyncio.timeout(20):
        began = loop.time()
        for _ in range(5):
            assert await loop.sock_recv(heard, 4096) == b"WATCHDOG=1"
    assert loop.time() - began >= 0.35
    beating.cancel()


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "x"},
        {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
    ],
)
async def test_no_signs_of_life_where_none_are_wanted(
    env: dict[str, str], heard: socket.socket
) -> None:
    async with asyncio.timeout(5):  # it returns at once
        await Manager({"NOTIFY_SOCKET": heard.getsockname(), **env}).keep_alive()
    heard.setblocking(False)
    with pytest.raises(BlockingIOError):
        heard.recv(1)


async def test_without_a_manager_nothing_is_sent() -> None:
    manager = Manager({"WATCHDOG_USEC": "1000"})
    manager.ready("serves")
    await manager.keep_alive()


def full(listener: socket.socket) -> int:
    """Fill the queue of `listener`: how many messages it holds."""
    held = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(listener.getsockname())
        while True:
            try:
                sender.send(b"full")
            except BlockingIOError:
                return held
            held += 1


async def test_a_manager_that_does_not_read_holds_up_no_loop(
    heard: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.notify._PATIENCE_S", 60)
    held, loop = full(heard), asyncio.get_running_loop()
    manager = Manager({"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "20000"})
    began = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await manager.keep_alive()
    manager.ready("serves")
    manager.stopping("ends")
    assert loop.time() - began < 20
    said = [await asyncio.to_thread(heard.recv, 4096) for _ in range(held + 2)]
    assert said == [b"full"] * held + [b"READY=1\nSTATUS=serves", b"STOPPING=1\nSTATUS=ends"]


def test_a_queue_that_stays_full_is_logged(
    heard: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orchestrator.notify._PATIENCE_S", 0.05)
    full(heard)
    manager = Manager({"NOTIFY_SOCKET": heard.getsockname()})
    manager.ready("serves")
    assert manager._waiting is not None
    manager._waiting.join(20)
    assert ["full" in each.getMessage() for each in caplog.records] == [True]
