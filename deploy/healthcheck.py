"""`healthcheck.py HOST PORT PATH`: ends with 0 where a GET is answered with 200. No packages.

`HOST` may be the path of a socket; the port does not matter then.
"""

from __future__ import annotations

import os
import socket
import sys

_PATIENCE_S = 2.0


def status(host: str, port: int, path: str, tls: bool = False) -> int:
    """The status code. Raises OSError, or ValueError for what is no HTTP answer."""
    asked = f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    with _connected(host, port) as plain:
        if not tls:
            return _ask(plain, asked)
        import ssl  # half of the start is spent here

        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # it is ourselves
        with trusting.wrap_socket(plain) as wrapped:
            return _ask(wrapped, asked)


def _connected(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port), _PATIENCE_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE_S)
    connection.connect(host)
    return connection


def _ask(connection: socket.socket, asked: bytes) -> int:
    connection.sendall(asked)
    with connection.makefile("rb") as answer:
        return int(answer.readline(64).split()[1])


def main() -> None:
    """See the module."""
    host, port, path = sys.argv[1:]
    try:
        code = status(host, int(port), path, bool(os.environ.get("ENGINEROOM_TLS_CERT")))
    except (OSError, ValueError, IndexError) as error:
        raise SystemExit(f"{host}:{port}{path}: {error}") from None
    if code != 200:
        raise SystemExit(f"{host}:{port}{path}: HTTP {code}")


if __name__ == "__main__":
    main()
