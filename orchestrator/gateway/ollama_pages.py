"""Ollama's small endpoints: which models there are, and which version is spoken."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from orchestrator.errors import BadRequest, BodyTooLarge, RequestTimeout
from orchestrator.gateway import ollama_models
from orchestrator.gateway.body import parse
from orchestrator.gateway.ollama import OllamaShowRequest
from orchestrator.gateway.ollama_orders import target_of
from orchestrator.gateway.pages import visible
from orchestrator.gateway.places import unknown_model
from orchestrator.gateway.routing import Router

_BODY_LIMIT = 64 * 1024


async def _read(request: Request) -> bytes:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _BODY_LIMIT:
            raise BodyTooLarge(f"the body has more than {_BODY_LIMIT} bytes")
    return data


class OllamaPages:
    """See the module."""

    def __init__(self, router: Router, body_s: float) -> None:
        self._router, self._body_s = router, body_s

    async def tags(self, request: Request) -> Response:
        """GET /api/tags."""
        seen = [each for each in self._router.targets() if visible(request, each)]
        return JSONResponse(ollama_models.tags(seen))

    async def running(self, request: Request) -> Response:
        """GET /api/ps."""
        seen = {x.route.name for x in self._router.targets() if visible(request, x)}
        routes = [route for route in self._router.routes() if route.name in seen]
        return JSONResponse(ollama_models.loaded(routes, time.time()))

    async def show(self, request: Request) -> Response:
        """POST /api/show."""
        try:
            async with asyncio.timeout(self._body_s):
                data = await _read(request)
        except TimeoutError:
            told = f"the body did not arrive within {self._body_s:g} s"
            raise RequestTimeout(told) from None
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        asked = parse(OllamaShowRequest, data)
        name = asked.model or asked.name
        if not name:
            raise BadRequest("name a model", param="model")
        target = target_of(self._router, name)
        if not visible(request, target):
            raise unknown_model()
        return JSONResponse(ollama_models.show(target.route))

    async def version(self, _: Request) -> Response:
        """GET /api/version."""
        return JSONResponse({"version": ollama_models.VERSION})

    async def hello(self, _: Request) -> Response:
        """GET /: what tools look for before anything else."""
        return PlainTextResponse("Engine Room is running")
