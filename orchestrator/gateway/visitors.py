"""The doors in front of an ASGI application: hosts checked, origins told, browsers answered."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import WrongHost
from orchestrator.gateway.doors import Doors
from orchestrator.gateway.manners import manners_of


class Visitors:
    """Wraps the application; there is nothing to do where both lists are empty."""

    def __init__(self, app: ASGIApp, doors: Doors) -> None:
        self._app, self._doors = app, doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._doors.closed:
            await self._app(scope, receive, send)
            return
        said = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
        origin = said.get(b"origin")
        try:
            self._doors.check(said.get(b"host"))
        except WrongHost as error:
            told = manners_of(scope["path"]).error(error)
            answer = Response(told, error.http_status, media_type="application/json")
            await answer(scope, receive, send)
            return
        wanted = said.get(b"access-control-request-method")
        first = self._doors.preflight(scope["method"], origin, wanted)
        if first is not None:
            answer = Response(status_code=204)
            answer.raw_headers.extend(first)
            await answer(scope, receive, send)
            return
        added = list(self._doors.answer(origin))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, sending)
