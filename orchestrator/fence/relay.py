"""The application: judges each call, asks the Docker Engine what it has to know, passes it on."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator.fence.bodies import LIMIT, Yard, created, ours
from orchestrator.fence.calls import Call, Kind, Refused, call_of, shown

_log = logging.getLogger("engineroom.fence")
_CONNECT_S = 5.0
_PROJECT = "com.docker.compose.project"
_SENT = ("content-type", "x-registry-auth")
_TOLD = ("content-type", "api-version", "ostype", "server", "docker-experimental")


class Away(Exception):
    """The Docker Engine cannot be reached, and why."""


class Fence:
    """One Docker socket, and what may be asked of it.

    `project` is Compose's name of the containers that stand around; what these are shown of the
    machine, an engine's container may be shown, for reading. `own` begins the id of the fence's own
    container, whose sockets are none of that.
    """

    def __init__(self, socket: str, network: str, user: str, project: str, own: str) -> None:
        self._socket, self._project, self._own = socket, project, own
        self._yard = Yard(network, user)
        self._docker = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits()),
            base_url="http://docker",
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            trust_env=False,
        )

    def application(self) -> Starlette:
        """What a server runs."""
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        routes = [Route("/{path:path}", self.answer, methods=methods)]
        return Starlette(routes=routes, lifespan=self._life)

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        async with self._docker:
            yield

    async def answer(self, request: Request) -> Response:
        """Pass a call on, or say why not."""
        path = request.scope["raw_path"].decode("latin-1")
        query = request.scope["query_string"].decode("latin-1")
        try:
            call = call_of(request.method, path, query, self._yard.network)
            call = await self._judged(call)
            return await self._pass(call, request, await self._body(call, request))
        except Refused as refusal:
            _log.warning("refused: %s %s: %s", request.method, shown(path), refusal)
            return JSONResponse({"message": f"the socket proxy refuses it: {refusal}"}, 403)
        except Away as away:
            _log.warning("%s", away)
            return JSONResponse({"message": str(away)}, 503)

    async def _judged(self, call: Call) -> Call:
        """A call about a container is for that very one, and it has to be one of ours."""
        if call.kind not in (Kind.LOOK, Kind.ORDER):
            return call
        found = await self._asked(f"/containers/{call.name}/json")
        if found is None:
            return call  # there is none: the Docker Engine says so itself
        labels = (found.get("Config") or {}).get("Labels") or {}
        around = call.kind is Kind.LOOK and labels.get(_PROJECT) == self._project
        if not around and not ours(found, self._yard.network):
            raise Refused(f"container {call.name} is no engine's of {self._yard.network}")
        return call.of(str(found["Id"]))

    async def _body(self, call: Call, request: Request) -> bytes:
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > LIMIT:
                raise Refused(f"the body has more than {LIMIT} bytes")
        if call.kind is Kind.CREATE:
            yard = Yard(self._yard.network, self._yard.user, await self._folders())
            return created(data, yard)
        if data.strip() not in (b"", b"{}", b"null"):
            raise Refused(f"{call.method} {call.path} takes no body")
        return b""

    async def _folders(self) -> tuple[str, ...]:
        """What the containers around are shown of the machine, less what this one is."""
        filters = json.dumps({"label": [f"{_PROJECT}={self._project}"]})
        rows = await self._asked("/containers/json", filters=filters) or []
        shown_to: dict[bool, set[str]] = {True: {"", "/", self._socket}, False: set()}
        for row in rows:
            own = str(row["Id"]).startswith(self._own)
            shown_to[own] |= {str(each.get("Source") or "") for each in row.get("Mounts") or ()}
        return tuple(sorted(shown_to[False] - shown_to[True]))

    async def _asked(self, path: str, **query: str) -> Any:
        """What the Docker Engine answers; None where there is no such thing."""
        try:
            answer = await self._docker.get(path, params=query)
        except httpx.HTTPError as error:
            raise Away(self._away(error)) from None
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise Away(f"the Docker Engine answered {answer.status_code} to {path}")
        return answer.json()

    async def _pass(self, call: Call, request: Request, body: bytes) -> Response:
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        url = f"{call.path}?{call.query}" if call.query else call.path
        wanted = self._docker.build_request(call.method, url, content=body, headers=headers)
        try:
            answer = await self._docker.send(wanted, stream=True)
        except httpx.HTTPError as error:
            raise Away(self._away(error)) from None
        told: Mapping[str, str] = {k: answer.headers[k] for k in _TOLD if k in answer.headers}
        status, end = answer.status_code, BackgroundTask(answer.aclose)
        if status in (204, 304) or call.method == "HEAD":
            return Response(status_code=status, headers=told, background=end)
        return StreamingResponse(self._stream(answer), status, told, background=end)

    async def _stream(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """What it says, as it comes; what breaks off is cut off."""
        try:
            async for part in answer.aiter_raw():
                yield part
        except httpx.HTTPError as error:
            _log.warning("the Docker Engine broke off: %s", error)
            raise ClientDisconnect from error

    def _away(self, error: Exception) -> str:
        return (
            f"the Docker Engine cannot be reached through {self._socket} ({error}): where "
            "permission is denied, set DOCKER_GID to the group of the socket "
            "(stat -c %g /var/run/docker.sock); where nothing is there, DOCKER_SOCKET to its path"
        )
