"""A name for each request, told as `x-request-id`: the client's own where it is harmless."""

from __future__ import annotations

import os
import re
from itertools import count

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Makes names that no other process makes, since each begins with a draw of its own."""

    def __init__(self) -> None:
        self._start = os.urandom(6).hex().encode()
        self._numbers = count(1)

    def of(self, given: bytes | None) -> bytes:
        """The given name, or a new one where there is none or it is not harmless."""
        if given is not None and _HARMLESS.fullmatch(given):
            return given
        return b"%b-%x" % (self._start, next(self._numbers))

    def around(self, app: ASGIApp) -> ASGIApp:
        """The same for what a framework answers."""

        async def named(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            name = self.of(dict(scope["headers"]).get(HEADER))

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", ()), (HEADER, name)]
                await send(message)

            await app(scope, receive, sending)

        return named
