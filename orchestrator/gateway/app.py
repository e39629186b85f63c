"""Puts the gateway together: its parts, its routes, its keys, its lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine_launchers.base import CrashCause
from orchestrator.control import GatewayConfig
from orchestrator.errors import (
    EngineRoomError,
    MethodNotAllowed,
    NotFound,
    ShuttingDown,
)
from orchestrator.gateway.connections import Connections
from orchestrator.gateway.desk import Desk, Watch
from orchestrator.gateway.door import ClientProtocol
from orchestrator.gateway.doors import Doors
from orchestrator.gateway.engine_pool import EnginePool
from orchestrator.gateway.entry import Entry, given_key
from orchestrator.gateway.exchange import Exchange, error_headers
from orchestrator.gateway.job import Job
from orchestrator.gateway.judging import Judge
from orchestrator.gateway.keyring import KeyRing
from orchestrator.gateway.link import SupervisorLink
from orchestrator.gateway.manners import manners_of
from orchestrator.gateway.ollama_pages import OllamaPages
from orchestrator.gateway.outliers import Key
from orchestrator.gateway.pages import Pages
from orchestrator.gateway.quarantine import Quarantine
from orchestrator.gateway.readers import READERS
from orchestrator.gateway.request_ids import RequestIds
from orchestrator.gateway.routing import Router
from orchestrator.gateway.tokens import Tokenizers
from orchestrator.gateway.verdicts import Verdict
from orchestrator.gateway.visitors import Visitors
from orchestrator.gateway.witness import witness
from orchestrator.gateway.workers.team import Ears, Team
from orchestrator.observability.metrics import ALIKE, GatewayMetrics

_FLUSH_S = 0.5  # for the last events of what is cut off


class Gateway:
    """All parts of one gateway process, which may be one worker of a `team`."""

    def __init__(self, config: GatewayConfig, team: Team) -> None:
        self.config, self.team = config, team
        self.metrics = GatewayMetrics()
        self.quarantine = Quarantine()
        self.router = Router(
            config.max_queue,
            config.queue_timeout_s,
            on_lost=self._lost,
            max_queue_tokens=config.max_queue_tokens,
            books=team.books,
            on_vain=self._vain,
        )
        self.witness = witness(config, self.metrics.spans)
        clocks = time.monotonic, time.time
        self.keys = KeyRing(config.key_hashes, self.metrics.keys, *clocks, team.books)
        self.doors = Doors(config.allowed_hosts, config.cors_origins)
        self.link = SupervisorLink(config, self.router, self.keys)
        self.router.on_change = self.link.changed
        self.pool = EnginePool(config.upstream_key)
        self.connections = Connections(self.metrics, config.write_timeout_s)
        self.desk = Desk(
            router=self.router,
            pool=self.pool,
            tokenizers=Tokenizers(self.pool, config.stall_timeout_s),
            judge=Judge(self.router, self.metrics, self.quarantine, self.link.failed, self._tell),
            metrics=self.metrics,
            watch=Watch(self.pool.sweep, self.connections.sweep, team.beat),
            entry=Entry(self.doors, self.keys, self.connections, self.pool),
            keys=self.keys,
            doors=self.doors,
            ids=RequestIds(),
            stall_timeout_s=config.stall_timeout_s,
            max_body_bytes=config.max_body_bytes,
            comment_s=config.stream_comment_s,
            head_s=config.head_timeout_s,
            body_s=config.body_timeout_s,
        )
        pages = Pages(self.router, team, self.link, config.version)
        ollama = OllamaPages(self.router, config.body_timeout_s)
        self.app = Starlette(
            routes=[
                *(Route(path, _only_posted, methods=["POST"]) for path in READERS),
                self._getting("/models", pages.models),
                self._getting("/v1/models", pages.openai_models),
                self._getting("/v1/models/{model}", pages.openai_model),
                self._getting("/api/tags", ollama.tags),
                self._getting("/api/ps", ollama.running),
                self._getting("/api/version", ollama.version, public=True),
                self._getting("/api/show", ollama.show, method="POST"),
                self._getting("/", ollama.hello, public=True),
                self._getting("/openapi.json", pages.openapi, public=True),
                self._getting("/metrics", pages.show_metrics),
                self._getting("/health", pages.health, public=True),
                self._getting("/health/live", pages.live, public=True),
                self._getting("/health/ready", pages.health_ready, public=True),
            ],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _no_such_route},
        )
        self.app.router.redirect_slashes = False
        self.asgi = self.desk.ids.around(Visitors(self.app, self.doors))

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.team.start(Ears(self.router.stir, self._hear, self._own_metrics, ALIKE))
        self.desk.watch.start()
        dialling = asyncio.create_task(self.link.run())
        yield
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        await self._end_answers()
        if self.witness is not None:
            await self.witness.close()
        self.desk.watch.stop()
        self.pool.close()
        await self.team.ended()

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
        make = Job if self.witness is None else self.witness.job
        return ClientProtocol(self.connections, self.desk, make, **given)

    def _lost(self, replica: Key, cause: CrashCause | None) -> None:
        self.quarantine.lost(replica, cause, time.monotonic())

    def _vain(self, model: str, seconds: float) -> None:
        self.metrics.queue.labels(model).observe(seconds)

    def _tell(self, verdict: Verdict) -> None:
        self.team.tell(verdict.model_dump_json().encode())

    def _hear(self, message: bytes) -> None:
        self.desk.judge.hear(Verdict.model_validate_json(message))

    def _own_metrics(self) -> str:
        """The exposition of this process."""
        self.metrics.known((route.name for route in self.router.routes()), READERS)
        for route in self.router.routes():
            running, waiting = self.router.own_load(route.name)
            self.metrics.in_flight.labels(route.name).set(running)
            self.metrics.waiting.labels(route.name).set(waiting)
            self.metrics.ready.labels(route.name).set(self.router.ready(route.name))
            self.metrics.ejected.labels(route.name).set(self.router.ejected(route.name))
        self.metrics.tasks.set(len(asyncio.all_tasks()))
        return self.metrics.render().decode()

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
                    address = request.client.host if request.client else ""
                    said = given_key(dict(request.headers.raw))
                    request.state.holder = self.keys.identify(said, address)
                return await show(request)
            except EngineRoomError as error:
                told = manners_of(path).error(error)
                headers = {"content-type": "application/json", **error_headers(error)}
                return Response(told, error.http_status, headers)

        return Route(path, endpoint, methods=[method])


async def _only_posted(request: Request) -> Response:
    """The protocol serves these paths: what comes here has another method, or is spelled oddly."""
    raise HTTPException(404 if request.method == "POST" else 405)


async def _no_such_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    problem: EngineRoomError = NotFound("no such path here; see the API reference")
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if status == 405:
        problem = MethodNotAllowed("this path does not take that method")
    told = manners_of(request.url.path).error(problem)
    return Response(told, problem.http_status, {"content-type": "application/json", **headers})
