"""Whose a listening port is: by the kernel's tables, by address, by the files of a process."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address

import pytest

from orchestrator.runtimes.ports import answering, held_by, listeners

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 00000000:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0100007F:1F41 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 13 1
   3: 0100007F:1F42 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1
"""
TABLE6 = """\
  sl  local_address                         remote_address   st a b c uid timeout inode
   0: 00000000000000000000000001000000:1F41 0:0 0A 00000000:00000000 00:00000000 0 0 0 21 1
   1: 0000000000000000FFFF00000100007F:1F41 0:0 0A 00000000:00000000 00:00000000 0 0 0 22 1
   2: 00000000000000000000000000000000:1F41 0:0 0A 00000000:00000000 00:00000000 0 0 0 23 1
"""


def test_the_nearest_listener_answers() -> None:
    four, six = listeners(TABLE, 8001), listeners(TABLE6, 8001)
    assert four == [(ip_address("127.0.0.1"), 11), (ip_address("0.0.0.0"), 12)]
    assert answering("127.0.0.1", four + six) == {11, 22}
    assert answering("10.0.0.1", four + six) == {12, 23}
    assert answering("::1", four + six) == {21}
    assert answering("::2", four + six) == {23}
    assert answering("localhost", four + six) == {11, 12, 21, 22, 23}
    assert answering("0.0.0.0", four) == {12}


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_a_port_is_the_process_that_listens_on_it(family: str, host: str) -> None:
    with socket.socket(getattr(socket, family)) as server:
        server.bind((host, 0))
        port = server.getsockname()[1]
        assert held_by(host, port, [])  # bound, but nobody listens yet
        server.listen()
        assert held_by(host, port, [os.getpid()])
        assert not held_by(host, port, [os.getppid()])
        assert not held_by("localhost", port, [])
