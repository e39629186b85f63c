"""Ports of this machine: listen on one, or keep a free one for a process that is still to come."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import ConfigError, PortTaken

_BACKLOG = 2048


def address_of(host: str) -> str:
    """The address that a name stands for here, asked once; blocks. Raises ConfigError."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(f"{host}: no address of this machine has that name") from error


def listen(host: str, port: int, setting: str = "admin_port") -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises PortTaken naming `setting`."""
    listener = _bound(host, port, setting)
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _taken(host, port, setting, error) from error
    return listener


def shared(host: str, port: int, count: int) -> list[socket.socket]:
    """So many listening sockets of one port; the kernel gives each its share of the connections.

    Raises PortTaken where another program has the port, even one that would share it.
    """
    with _alone(host, port):
        return _shared(host, port, count)


@contextmanager
def _alone(host: str, port: int) -> Iterator[None]:
    """While nobody else does the same, who would be let in as one of ours. Raises PortTaken."""
    with socket.socket(socket.AF_UNIX) as sign:
        if platform.system() == "Linux":
            try:
                sign.bind(f"\0engineroom port {port}")
            except OSError as error:
                raise _taken(host, port, "port", error) from error
        yield


def _shared(host: str, port: int, count: int) -> list[socket.socket]:
    listen(host, port, "port").close()
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(_bound(host, port_of(made[0]) if made else port, "port", share=True))
            made[-1].listen(_BACKLOG)
    except PortTaken:
        for each in made:
            each.close()
        raise
    return made


def reserve(host: str, port: int, setting: str = "port") -> socket.socket:
    """A socket that is bound to a port (0: any free one) and does not listen. Raises PortTaken.

    While it is open, Linux gives that port to nobody who asks for any port, and to whoever names it
    with SO_REUSEADDR: the gateway does, at every start of it.
    """
    return _bound(host, port, setting)


def port_of(bound: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(bound.getsockname()[1])


def _bound(host: str, port: int, setting: str, share: bool = False) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise _taken(host, port, setting, error) from error
    return made


def _taken(host: str, port: int, setting: str, error: OSError) -> PortTaken:
    return PortTaken(
        f"cannot listen on {host}:{port} ({error.strerror}): free it, or set another {setting}"
    )
