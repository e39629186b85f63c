"""Puts the gateway together: routes, keys, metrics, lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from engine_launchers.base import CrashCause
from orchestrator.control import ON_DEMAND, GatewayConfig
from orchestrator.errors import (
    EngineRoomError,
    GatewayBusy,
    MethodNotAllowed,
    NotFound,
    ShuttingDown,
    UnknownModel,
)
from orchestrator.gateway.calls import Caller
from orchestrator.gateway.connections import Connections
from orchestrator.gateway.crowd import Room
from orchestrator.gateway.exchange import ClientGone, Exchange, error_headers
from orchestrator.gateway.handlers import Facts, Generating, Handler
from orchestrator.gateway.keyring import KeyRing
from orchestrator.gateway.link import SupervisorLink
from orchestrator.gateway.outliers import Key
from orchestrator.gateway.places import Target
from orchestrator.gateway.quarantine import Quarantine
from orchestrator.gateway.routing import Router
from orchestrator.gateway.upstream import Upstream
from orchestrator.observability.metrics import CONTENT_TYPE, GatewayMetrics

_log = logging.getLogger("engineroom.gateway")


class Gateway:
    """All parts of one gateway process."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.metrics = GatewayMetrics()
        self.quarantine = Quarantine()
        self.router = Router(
            config.max_queue,
            config.queue_timeout_s,
            self._changed,
            on_lost=self._lost,
            max_queue_tokens=config.max_queue_tokens,
        )
        self.keys = KeyRing(config.key_hashes, self.metrics.keys, time.monotonic, time.time)
        self.link = SupervisorLink(config, self.router, self.keys)
        self.upstream = Upstream(config.stall_timeout_s)
        self.connections = Connections(self.metrics, config.write_timeout_s)
        caller = Caller(self.router, self.upstream, self.metrics, self.quarantine, self.link.failed)
        generating = Generating(self.router, self.upstream, self.metrics, caller, self.keys)
        self.app = Starlette(
            routes=[
                self._posting("/generate", generating.generate),
                self._posting("/generate_stream", generating.generate_stream),
                self._posting("/v1/completions", generating.completions),
                self._posting("/v1/chat/completions", generating.chat),
                self._getting("/models", self.models),
                self._getting("/v1/models", self.openai_models),
                self._getting("/v1/models/{model}", self.openai_model),
                self._getting("/metrics", self.show_metrics),
                self._getting("/health", self.health, public=True),
                self._getting("/health/live", self.live, public=True),
                self._getting("/health/ready", self.health_ready, public=True),
            ],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _no_such_route},
        )
        self.app.router.redirect_slashes = False

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        dialling = asyncio.create_task(self.link.run())
        yield
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        await self.upstream.close()

    def _changed(self) -> None:
        for route in self.router.routes():
            running, waiting = self.router.model_load(route.name)
            self.metrics.in_flight.labels(route.name).set(running)
            self.metrics.waiting.labels(route.name).set(waiting)
            self.metrics.ready.labels(route.name).set(self.router.ready(route.name))
            self.metrics.ejected.labels(route.name).set(self.router.ejected(route.name))
        self.link.changed()

    def _lost(self, replica: Key, cause: CrashCause | None) -> None:
        self.quarantine.lost(replica, cause, time.monotonic())

    def refuse_crowd(self) -> None:
        """Raise GatewayBusy when there is no descriptor left for another engine connection."""
        engines = sum(self.router.in_flight().values())
        if self.connections.room(engines) is Room.NONE_TO_SPARE:
            told = "the gateway has no file descriptors left for another request; try again"
            raise GatewayBusy(told)

    # --- endpoints ------------------------------------------------------------------------------

    def _posting(self, path: str, handler: Handler) -> Route:
        return Route(path, _Posting(self, path, handler), methods=["POST"])

    def _getting(
        self, path: str, show: Callable[[Request], Awaitable[Response]], public: bool = False
    ) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                if not public:
                    address = request.client.host if request.client else ""
                    said = request.headers.get("authorization")
                    request.state.holder = self.keys.identify(said, address)
                return await show(request)
            except EngineRoomError as error:
                return JSONResponse(error.envelope(), error.http_status, error_headers(error))

        return Route(path, endpoint, methods=["GET"])

    async def models(self, request: Request) -> Response:
        """GET /models: every model that the key may use, with its state and load."""
        seen = {x.route.name for x in self.router.targets() if self._visible(request, x)}
        shown = [route.name for route in self.router.routes() if route.name in seen]
        return JSONResponse({"models": [self._model(name) for name in shown]})

    @staticmethod
    def _visible(request: Request, target: Target) -> bool:
        served, holder = target.served, request.state.holder
        return bool(holder.may_use(served.name, target.route.name, served.adapter))

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

    async def openai_models(self, request: Request) -> Response:
        """GET /v1/models."""
        data = [
            self._openai_model(each.served.name)
            for each in self.router.targets()
            if self._visible(request, each)
        ]
        return JSONResponse({"object": "list", "data": data})

    async def openai_model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        name = request.path_params["model"]
        found = self._openai_model(name)
        if not self._visible(request, self.router.find(name)):
            raise UnknownModel("no model of that name is served, see /v1/models", param="model")
        return JSONResponse(found)

    def _openai_model(self, name: str) -> dict[str, object]:
        target = self.router.find(name)
        route = target.route
        head = {"id": name, "object": "model", "created": route.created, "owned_by": "engineroom"}
        # As vLLM tells it: the model behind another name, and whose adapter this is.
        parent = {"root": route.name, "parent": route.name if target.served.adapter else None}
        return {**head, **parent, "max_model_len": route.context}

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics."""
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


class _Posting:
    """ASGI endpoint around a handler: key, body, disconnect, errors, metrics."""

    def __init__(self, gateway: Gateway, path: str, handler: Handler) -> None:
        self._gateway, self._path, self._handler = gateway, path, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        facts = Facts(began=time.monotonic())
        code = "499"
        try:
            address = (scope.get("client") or ("",))[0]
            said = exchange.headers.get("authorization")
            facts.holder = self._gateway.keys.identify(said, address)
            self._gateway.refuse_crowd()
            data = await exchange.read(self._gateway.config.max_body_bytes)
            await exchange.unless_gone(self._handler(exchange, data, facts))
            code = str(exchange.status)
        except ClientGone:
            self._gateway.metrics.disconnects.labels(facts.model).inc()
        except EngineRoomError as error:
            code = await self._fail(exchange, facts, error)
        except asyncio.CancelledError:
            ending = ShuttingDown("the server ended before the answer was complete")
            code = await self._fail(exchange, facts, ending)
            raise
        except Exception:  # noqa: BLE001 - the last line: log it, tell the client, serve on
            _log.exception("path=%s failed", self._path)
            internal = EngineRoomError("internal error; the gateway's log has the details")
            code = await self._fail(exchange, facts, internal)
        finally:
            self._count(facts, code)

    async def _fail(self, exchange: Exchange, facts: Facts, error: EngineRoomError) -> str:
        if exchange.status is None or exchange.streaming:
            if exchange.streaming:
                self._gateway.metrics.broken.labels(facts.model, error.code).inc()
            await exchange.fail(error)
        return str(error.http_status)

    def _count(self, facts: Facts, code: str) -> None:
        metrics = self._gateway.metrics
        if facts.permit is not None:
            facts.permit.close(facts.prompt, facts.tokens or facts.pieces)
        metrics.requests.labels(facts.model, self._path, code).inc()
        metrics.seconds.labels(facts.model, self._path).observe(time.monotonic() - facts.began)
        if facts.tokens:
            metrics.tokens.labels(facts.model).inc(facts.tokens)


async def _no_such_route(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    problem: EngineRoomError = NotFound("no such path here; see the API reference")
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if status == 405:
        problem = MethodNotAllowed("this path does not take that method")
    return JSONResponse(problem.envelope(), problem.http_status, headers)
