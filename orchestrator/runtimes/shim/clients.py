"""The shim's socket: lines of JSON in, lines of JSON out."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any

_LINE_MAX = 65_536


class Clients:
    """Whoever is connected to the shim. `obey` is called with each order."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        path: str,
        obey: Callable[[dict[str, Any]], None],
    ) -> None:
        self.selector, self.obey = selector, obey
        self.hello: dict[str, Any] = {}
        self.open: dict[socket.socket, bytes] = {}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(16)
        self.listener.setblocking(False)
        selector.register(self.listener, selectors.EVENT_READ, self.accept)

    def accept(self, _: object) -> None:
        """Greet one more client with the identities of shim and engine."""
        try:
            client, _address = self.listener.accept()
        except BlockingIOError:
            return
        client.setblocking(False)
        self.open[client] = b""
        self.selector.register(client, selectors.EVENT_READ, self.read)
        self.send(client, self.hello)

    def read(self, client: socket.socket) -> None:
        """Take what came and obey every whole line of it."""
        try:
            data = client.recv(_LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(self.open[client]) > _LINE_MAX:
            self.drop(client)
            return
        *lines, self.open[client] = (self.open[client] + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # not an order
                order = json.loads(line)
                if isinstance(order, dict) and "op" in order:
                    self.obey(order)

    def send(self, client: socket.socket, message: dict[str, Any]) -> None:
        """One line to one client; one that does not read is dropped."""
        try:
            client.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.drop(client)

    def tell(self, message: dict[str, Any]) -> None:
        """One line to everybody."""
        for client in list(self.open):
            self.send(client, message)

    def drop(self, client: socket.socket) -> None:
        """Let go of a client."""
        if self.open.pop(client, None) is not None:
            self.selector.unregister(client)
            client.close()
