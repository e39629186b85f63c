"""Port 0: a free port that stays the gateway's own, through its restarts and the supervisor's."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from orchestrator.cli.client import find_server
from orchestrator.listening import listen, port_of, reserve
from tests.harness import Room, until

RoomMaker = Callable[..., Room]


def test_a_reserved_port_is_given_to_nobody_but_who_asks_for_it() -> None:
    with reserve("127.0.0.1", 0) as held:
        port = port_of(held)
        with pytest.raises(OSError, match="in use"), socket.socket() as stranger:
            stranger.bind(("127.0.0.1", port))
        for _ in range(3):  # as often as the gateway starts
            with (
                listen("127.0.0.1", port, "port") as server,
                socket.create_connection(server.getsockname(), 5),
            ):
                server.accept()[0].close()
    with listen("127.0.0.1", 0) as any_port:
        assert port_of(any_port) > 0


@pytest.mark.slow
def test_two_servers_on_any_port_keep_theirs(make_room: RoomMaker) -> None:
    one = make_room(name="one", port=0, admin_port=0).start()
    two = make_room(name="two", port=0, admin_port=0).start()
    assert len({one.url, two.url, one.ready["admin"], two.ready["admin"]}) == 4
    assert find_server(one.data).gateway == one.url
    before = one.engine("gateway-0")
    assert before["url"] == one.url
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: one.engine("gateway-0")["pid"] not in (None, before["pid"]), 15, "a new gateway")
    one.wait_state("ready", "gateway-0")
    assert one.generate("again", max_new_tokens=2).status_code == 200
    gateway, url = one.engine("gateway-0"), one.url
    one.kill()
    one.start()
    assert (one.engine("gateway-0")["pid"], one.url) == (gateway["pid"], url)
    assert one.stop() == two.stop() == 0
