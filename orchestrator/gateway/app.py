"""Puts the gateway together: routes, keys, metrics, lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine_launchers.base import CrashCause
from orchestrator.control import ON_DEMAND, GatewayConfig
from orchestrator.errors import (
    EngineRoomError,
    GatewayBusy,
    MethodNotAllowed,
    NotFound,
    ShuttingDown,
    Unauthorized,
)
from orchestrator.gateway.connections import Connections
from orchestrator.gateway.crowd import Room
from orchestrator.gateway.desk import Desk, Watch
from orchestrator.gateway.door import ClientProtocol
from orchestrator.gateway.engine_pool import EnginePool
from orchestrator.gateway.exchange import Exchange, error_headers
from orchestrator.gateway.judging import Judge
from orchestrator.gateway.link import SupervisorLink
from orchestrator.gateway.manners import manners_of
from orchestrator.gateway.ollama_pages import OllamaPages
from orchestrator.gateway.openapi import document
from orchestrator.gateway.outliers import Key
from orchestrator.gateway.quarantine import Quarantine
from orchestrator.gateway.readers import READERS
from orchestrator.gateway.request_ids import RequestIds
from orchestrator.gateway.routing import Router
from orchestrator.gateway.tokens import Tokenizers
from orchestrator.observability.metrics import CONTENT_TYPE, GatewayMetrics

_FLUSH_S = 0.5  # for the last events of what is cut off


class Gateway:
    """All parts of one gateway process."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.metrics = GatewayMetrics()
        self.quarantine = Quarantine()
        self.router = Router(
            config.max_queue, config.queue_timeout_s, self._changed, on_lost=self._lost
        )
        self.link = SupervisorLink(config, self.router)
        self.pool = EnginePool()
        self.connections = Connections(self.metrics, config.write_timeout_s)
        self.desk = Desk(
            router=self.router,
            pool=self.pool,
            tokenizers=Tokenizers(self.pool, config.stall_timeout_s),
            judge=Judge(self.router, self.metrics, self.quarantine, self.link.failed),
            metrics=self.metrics,
            watch=Watch(self.pool.sweep, self.connections.sweep),
            admit=self.admit,
            ids=RequestIds(),
            stall_timeout_s=config.stall_timeout_s,
            max_body_bytes=config.max_body_bytes,
            comment_s=config.stream_comment_s,
            head_s=config.head_timeout_s,
            body_s=config.body_timeout_s,
        )
        ollama = OllamaPages(self.router)
        self.app = Starlette(
            routes=[
                *(Route(path, _only_posted, methods=["POST"]) for path in READERS),
                self._getting("/models", self.models),
                self._getting("/v1/models", self.openai_models),
                self._getting("/v1/models/{model}", self.openai_model),
                self._getting("/api/tags", ollama.tags),
                self._getting("/api/ps", ollama.running),
                self._getting("/api/version", ollama.version, public=True),
                self._getting("/api/show", ollama.show, method="POST"),
                self._getting("/", ollama.hello, public=True),
                self._getting("/openapi.json", self.openapi, public=True),
                self._getting("/metrics", self.show_metrics),
                self._getting("/health", self.health, public=True),
                self._getting("/health/live", self.live, public=True),
                self._getting("/health/ready", self.health_ready, public=True),
            ],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _no_such_route},
        )
        self.app.router.redirect_slashes = False
        self.asgi = self.desk.ids.around(self.app)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.desk.watch.start()
        dialling = asyncio.create_task(self.link.run())
        yield
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        await self._end_answers()
        self.desk.watch.stop()
        self.pool.close()

    async def _end_answers(self) -> None:
        """The server has waited as long as it does: what still runs is told so."""
        for each in list(self.desk.watch.all):
            if isinstance(each, Exchange) and each.worker is not None:
                each.worker.fail(ShuttingDown("the server ended before the answer was complete"))
        for client in list(self.connections.all):
            client.close()
        await self.connections.wait_empty(_FLUSH_S)

    def protocol(self, **given: Any) -> ClientProtocol:
        """A protocol for the server's next connection."""
        return ClientProtocol(self.connections, self.desk, **given)

    def _lost(self, replica: Key, cause: CrashCause | None) -> None:
        self.quarantine.lost(replica, cause, time.monotonic())

    def _changed(self) -> None:
        self.link.changed()

    def admit(self, headers: dict[bytes, bytes]) -> None:
        """Raise Unauthorized, or GatewayBusy when no descriptor is left for another connection."""
        check_key(self.config.key_hashes, given_key(headers))
        if self.connections.room(self.pool.count) is Room.NONE_TO_SPARE:
            told = "the gateway has no file descriptors left for another request; try again"
            raise GatewayBusy(told)

    # --- endpoints ------------------------------------------------------------------------------

    def _getting(
        self,
        path: str,
        show: Callable[[Request], Awaitable[Response]],
        public: bool = False,
        method: str = "GET",
    ) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                if not public:
                    check_key(self.config.key_hashes, given_key(dict(request.headers.raw)))
                return await show(request)
            except EngineRoomError as error:
                told = manners_of(path).error(error)
                headers = {"content-type": "application/json", **error_headers(error)}
                return Response(told, error.http_status, headers)

        return Route(path, endpoint, methods=[method])

    async def openapi(self, _: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(document(self.config.version))

    async def models(self, _: Request) -> Response:
        """GET /models: every model with its state and load."""
        return JSONResponse({"models": [self._model(route.name) for route in self.router.routes()]})

    def _model(self, name: str) -> dict[str, object]:
        route = self.router.find(name).route
        running, waiting = self.router.model_load(name)
        return {
            "name": name,
            "state": route.state,
            "ready": self.router.ready(name),
            "why": route.why,
            "engine": route.engine,
            "aliases": [each.name for each in route.names[1:] if each.adapter is None],
            "adapters": sorted({each.adapter for each in route.names if each.adapter}),
            "context": route.context,
            "in_flight": running,
            "waiting": waiting,
        }

    async def openai_models(self, _: Request) -> Response:
        """GET /v1/models."""
        data = [self._openai_model(each.served.name) for each in self.router.targets()]
        return JSONResponse({"object": "list", "data": data})

    async def openai_model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        return JSONResponse(self._openai_model(request.path_params["model"]))

    def _openai_model(self, name: str) -> dict[str, object]:
        target = self.router.find(name)
        route = target.route
        head = {"id": name, "object": "model", "created": route.created, "owned_by": "engineroom"}
        # As vLLM tells it: the model behind another name, and whose adapter this is.
        parent = {"root": route.name, "parent": route.name if target.served.adapter else None}
        return {**head, **parent, "max_model_len": route.context}

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics."""
        for route in self.router.routes():
            running, waiting = self.router.model_load(route.name)
            self.metrics.in_flight.labels(route.name).set(running)
            self.metrics.waiting.labels(route.name).set(waiting)
            self.metrics.ready.labels(route.name).set(self.router.ready(route.name))
            self.metrics.ejected.labels(route.name).set(self.router.ejected(route.name))
        return Response(self.metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def health(self, _: Request) -> Response:
        """GET /health: always 200 while this process lives; the truth is in the body."""
        models = [self._model(route.name) for route in self.router.routes()]
        able = [each for each in models if each["ready"] or each["state"] in ON_DEMAND]
        if self.router.draining:
            status = "draining"
        elif not models:
            status = "starting"
        else:
            status = "ok" if len(able) == len(models) else "degraded"
        supervisor = "connected" if self.link.connected else "away"
        return JSONResponse({"status": status, "supervisor": supervisor, "models": models})

    async def live(self, _: Request) -> Response:
        """GET /health/live: this process answers."""
        return JSONResponse({"status": "ok"})

    async def health_ready(self, _: Request) -> Response:
        """GET /health/ready: 200 when a model can generate, now or when it is asked for."""
        routes = self.router.routes()
        able = any(
            self.router.ready(each.name) or (each.state in ON_DEMAND and each.expected)
            for each in routes
        )
        ready = able and not self.router.draining
        return JSONResponse({"ready": ready}, 200 if ready else 503)


def given_key(headers: dict[bytes, bytes]) -> bytes | None:
    """What a request gives as its key, as an authorization; Anthropic's clients have a header."""
    own = headers.get(b"x-api-key")
    return headers.get(b"authorization") or (None if own is None else b"Bearer " + own)


def check_key(hashes: tuple[str, ...], authorization: bytes | None) -> None:
    """Compare with every accepted key, without leaving early. Raises Unauthorized."""
    if not hashes:
        return
    scheme, _, key = (authorization or b"").partition(b" ")
    given = hashlib.sha256(key.strip()).hexdigest()
    matches = [hmac.compare_digest(given, known) for known in hashes]
    if scheme.lower() != b"bearer" or not any(matches):
        raise Unauthorized("give a valid API key as `Authorization: Bearer KEY`")


async def _only_posted(request: Request) -> Response:
    """The protocol serves these paths: what comes here has another method, or is spelled oddly."""
    raise HTTPException(404 if request.method == "POST" else 405)


async def _no_such_route(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    problem: EngineRoomError = NotFound("no such path here; see the API reference")
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if status == 405:
        problem = MethodNotAllowed("this path does not take that method")
    return JSONResponse(problem.envelope(), problem.http_status, headers)
