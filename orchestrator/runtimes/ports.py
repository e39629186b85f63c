"""Who listens on a port: the kernel's tables of sockets, and the files of processes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path

_LISTEN = "0A"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def listeners(table: str, port: int) -> list[tuple[Address, int]]:
    """(address, socket inode) of each socket that listens on `port`, from /proc/net/tcp{,6}."""
    found: list[tuple[Address, int]] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        place, _, number = fields[1].partition(":")
        if int(number, 16) == port:
            found.append((_address(place), int(fields[9])))
    return found


def _address(hexadecimal: str) -> Address:
    """An address as the kernel prints it: words of 32 bits, each in the machine's byte order."""
    raw = bytes.fromhex(hexadecimal)
    words = [raw[i : i + 4] for i in range(0, len(raw), 4)]
    packed = b"".join(socket.htonl(int.from_bytes(word)).to_bytes(4) for word in words)
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def answering(host: str, found: Iterable[tuple[Address, int]]) -> set[int]:
    """The inodes among `found` that a connection to `host` can reach.

    A listener on the very address takes it before one on the wildcard does. A name instead of an
    address may mean any of them.
    """
    every = list(found)
    try:
        wanted = ipaddress.ip_address(host)
    except ValueError:
        return {inode for _, inode in every}
    exact = {inode for address, inode in every if address == wanted}
    return exact or {
        inode
        for address, inode in every
        if address.is_unspecified and (wanted.version == 4 or address.version == 6)
    }


def held_by(host: str, port: int, pids: Iterable[int]) -> bool:
    """Whether every socket that answers on `host`:`port` is one of these processes'; blocks.

    True as well where nobody listens, or this system does not show who does.
    """
    found: list[tuple[Address, int]] = []
    for table in _TABLES:
        with contextlib.suppress(OSError):  # no IPv6 here
            found += listeners(Path(table).read_text(), port)
    wanted = answering(host, found)
    return not wanted or wanted <= sockets_of(pids)


def sockets_of(pids: Iterable[int]) -> set[int]:
    """Inodes of all sockets that these processes hold open."""
    inodes: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            for file in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(file.path)
                    if target.startswith("socket:["):
                        inodes.add(int(target[8:-1]))
    return inodes
