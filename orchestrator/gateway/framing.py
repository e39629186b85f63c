"""What a request's head may look like, whatever path it is for. Pure.

llhttp has refused what is no HTTP; these are the doubts that it leaves: who is asked, twice-given
headers that a server behind or before us could read the other way, and sizes.
"""

from __future__ import annotations

import re

from orchestrator.errors import BadRequest, EngineRoomError, HeadTooLarge

HEAD_LIMIT = 32 * 1024  # bytes
_MOST_HEADERS = 100
_HOST = re.compile(rb"[A-Za-z0-9._~%\[\]-]+(:[0-9]{0,5}|[0-9A-Fa-f:.]*\](:[0-9]{0,5})?)?")
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization")


def head_of(
    target: bytes, version: str, headers: list[tuple[bytes, bytes]], size: int
) -> dict[bytes, bytes] | EngineRoomError:
    """The headers by name, or why they are refused; `size` is what was read for them, in bytes."""
    if len(headers) > _MOST_HEADERS:
        return HeadTooLarge(f"the request has more than {_MOST_HEADERS} headers")
    if size > HEAD_LIMIT and sum(len(n) + len(v) for n, v in headers) + len(target) > HEAD_LIMIT:
        return HeadTooLarge(f"the request's head has more than {HEAD_LIMIT} bytes")
    if version not in ("1.0", "1.1"):
        return BadRequest("this server speaks HTTP/1.1")
    found = dict(headers)
    if len(found) != len(headers):
        names = [name for name, _ in headers]
        for name in _ONCE:
            if names.count(name) > 1:
                return BadRequest(f"the header {name.decode()} is given twice")
    host = found.get(b"host")
    if host is None:
        if version != "1.0":
            return BadRequest("the request names no host")
    elif _HOST.fullmatch(host) is None:
        return BadRequest("the host header is not a host")
    if target[:1] != b"/":
        return BadRequest("the request's target is not a path")
    if found.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        return BadRequest("the only transfer encoding here is chunked")
    if found.get(b"expect", b"100-continue").lower() != b"100-continue":
        return BadRequest("the only expectation that is met is 100-continue")
    return found
