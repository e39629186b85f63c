"""What can be seen of the gateway: its models, its health, its metrics, its API."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator.control import ON_DEMAND
from orchestrator.gateway.link import SupervisorLink
from orchestrator.gateway.openapi import document
from orchestrator.gateway.places import Target, unknown_model
from orchestrator.gateway.routing import Router
from orchestrator.gateway.workers.team import Team
from orchestrator.observability.metrics import CONTENT_TYPE


def visible(request: Request, target: Target) -> bool:
    """Whether the key of a request may use what a name stands for."""
    served, holder = target.served, request.state.holder
    return bool(holder.may_use(served.name, target.route.name, served.adapter))


class Pages:
    """See the module."""

    def __init__(self, router: Router, team: Team, link: SupervisorLink, version: str) -> None:
        self._router, self._team, self._link, self._version = router, team, link, version

    async def openapi(self, _: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(document(self._version))

    async def models(self, request: Request) -> Response:
        """GET /models: every model that the key may use, with its state and load."""
        seen = {x.route.name for x in self._router.targets() if visible(request, x)}
        shown = [route.name for route in self._router.routes() if route.name in seen]
        return JSONResponse({"models": [self._model(name) for name in shown]})

    def _model(self, name: str) -> dict[str, object]:
        route = self._router.find(name).route
        running, waiting = self._router.model_load(name)
        return {
            "name": name,
            "state": route.state,
            "ready": self._router.ready(name),
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
            for each in self._router.targets()
            if visible(request, each)
        ]
        return JSONResponse({"object": "list", "data": data})

    async def openai_model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        name = request.path_params["model"]
        found = self._openai_model(name)
        if not visible(request, self._router.find(name)):
            raise unknown_model()
        return JSONResponse(found)

    def _openai_model(self, name: str) -> dict[str, object]:
        target = self._router.find(name)
        route = target.route
        head = {"id": name, "object": "model", "created": route.created, "owned_by": "engineroom"}
        # As vLLM tells it: the model behind another name, and whose adapter this is.
        parent = {"root": route.name, "parent": route.name if target.served.adapter else None}
        return {**head, **parent, "max_model_len": route.context}

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics, of all workers together."""
        return Response(await self._team.metrics(), headers={"content-type": CONTENT_TYPE})

    async def health(self, _: Request) -> Response:
        """GET /health: always 200 while this process lives; the truth is in the body."""
        models = [self._model(route.name) for route in self._router.routes()]
        able = [each for each in models if each["ready"] or each["state"] in ON_DEMAND]
        if self._router.draining:
            status = "draining"
        elif not models:
            status = "starting"
        else:
            status = "ok" if len(able) == len(models) else "degraded"
        supervisor = "connected" if self._link.connected else "away"
        return JSONResponse({"status": status, "supervisor": supervisor, "models": models})

    async def live(self, _: Request) -> Response:
        """GET /health/live: this process answers."""
        return JSONResponse({"status": "ok"})

    async def health_ready(self, _: Request) -> Response:
        """GET /health/ready: 200 when a model can generate, now or when it is asked for."""
        routes = self._router.routes()
        able = any(
            self._router.ready(each.name) or (each.state in ON_DEMAND and each.expected)
            for each in routes
        )
        ready = able and not self._router.draining
        return JSONResponse({"ready": ready}, 200 if ready else 503)
