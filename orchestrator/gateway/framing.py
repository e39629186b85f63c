"""What the head of a request may be, beyond what the parser refuses by itself. Pure.

The parser (llhttp) settles where a message begins and ends: two lengths, bare line feeds, folded
lines and odd chunk sizes never come this far. Sizes are bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.errors import (
    BadRequest,
    ExpectationFailed,
    HeadTooLarge,
    RequestError,
)

MAX_HEAD = 32 * 1024
MAX_FIELDS = 100
# A name, an IPv4 address or an IPv6 address in brackets, and a port.
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
_ORIGIN_FORM = b"/"


class HeadSize:
    """Counts a head while it comes, so that no more of it is ever kept."""

    __slots__ = ("_bytes", "_fields")

    def __init__(self) -> None:
        self._bytes = self._fields = 0

    def target(self, part: bytes) -> None:
        """A part of the request line's target. Raises HeadTooLarge."""
        self._grow(len(part))

    def field(self, name: bytes, value: bytes) -> None:
        """A header field. Raises HeadTooLarge."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise HeadTooLarge(f"more than {MAX_FIELDS} header fields")
        self._grow(len(name) + len(value) + 4)

    def _grow(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MAX_HEAD:
            raise HeadTooLarge(f"the request's head is over {MAX_HEAD} bytes")


def check_head(
    version: str, target: bytes, fields: Iterable[tuple[bytes, bytes]]
) -> RequestError | None:
    """Why a request is refused for its head; None where it is in order. Names are lower case."""
    by_name: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        by_name.setdefault(name, []).append(value)
    if version not in ("1.0", "1.1"):
        return BadRequest("this server speaks HTTP/1.1")
    if not target.startswith(_ORIGIN_FORM):
        return BadRequest("give the path alone as the request's target")
    return (
        _host(version, by_name.get(b"host", ()))
        or _coding(by_name.get(b"transfer-encoding", ()))
        or _wishes(by_name)
    )


def _host(version: str, given: Sequence[bytes]) -> RequestError | None:
    if not given and version == "1.0":
        return None
    if len(given) != 1:
        return BadRequest("give exactly one Host header")
    match = _HOST.fullmatch(given[0])
    if match is None or int(match[1] or 0) > 65535:
        return BadRequest("the Host header is not a host name and port")
    return None


def _coding(given: Sequence[bytes]) -> RequestError | None:
    """Only what the parser takes apart: any other coding would reach the JSON reader as it is."""
    if given and [each.strip().lower() for each in given] != [b"chunked"]:
        return BadRequest("the only transfer coding taken is chunked")
    return None


def _wishes(by_name: dict[bytes, list[bytes]]) -> RequestError | None:
    if b"websocket" in (each.lower() for each in by_name.get(b"upgrade", ())):
        return BadRequest("there are no web sockets here")  # other upgrades are just not made
    expected = by_name.get(b"expect", [b"100-continue"])
    if [each.lower() for each in expected] != [b"100-continue"]:
        return ExpectationFailed("the only expectation that is met is 100-continue")
    for name in (b"authorization", b"content-type", b"content-length"):
        if len(by_name.get(name, ())) > 1:
            return BadRequest(f"the header {name.decode()} is given twice")
    return None
