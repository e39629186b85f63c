"""The control API: FastAPI on a listener of its own, behind a bearer token."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from engine_launchers.machine import HardwareProfile
from orchestrator import __version__
from orchestrator.admin_events import add_events
from orchestrator.admin_keys import add_keys
from orchestrator.admin_orders import add_orders
from orchestrator.errors import (
    BadRequest,
    ConfigError,
    EngineRoomError,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
    UnsupportedParameter,
)
from orchestrator.keyfile import KeyFile
from orchestrator.observability.metrics import CONTENT_TYPE
from orchestrator.supervision.lines import Lines
from orchestrator.supervision.operator import Operator
from orchestrator.supervision.supervisor import Supervisor
from orchestrator.supervision.tails import read_tail
from orchestrator.supervision.views import describe_model

_FOLLOW_S = 0.2
_BEARER = HTTPBearer(auto_error=False, description="The content of admin.token")


class _Guard:
    """Lets a request pass that carries the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def __call__(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        sent = given.credentials if given else ""
        if not hmac.compare_digest(sent.encode(), self._token):
            raise Unauthorized("give the admin token as `Authorization: Bearer TOKEN`")


def read_or_make_token(path: Path) -> str:
    """The admin token, made whole at the first start; the caller holds the data directory's lock.

    Raises ConfigError for a file that others may read.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read the admin token; run: chmod 600 {path}")
        token = path.read_text().strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(token + "\n")
        fresh.replace(path)
    if len(token) < 16:
        raise ConfigError(f"{path}: too short for a token; remove the file to get a new one")
    return token


def build_admin(
    supervisor: Supervisor,
    operator: Operator,
    token: str,
    shut_down: Callable[[], None],
    keys: KeyFile,
    open_metrics: bool = False,
) -> FastAPI:
    """The admin application of one supervisor. `open_metrics`: those need no token."""
    app = FastAPI(
        title="Engine Room admin API",
        version=__version__,
        description="Engines, plans, hardware and events of one supervisor.",
    )
    app.exception_handler(EngineRoomError)(_tell)
    app.exception_handler(RequestValidationError)(_tell_invalid)
    app.exception_handler(HTTPException)(_tell_http)
    guard = [Depends(_Guard(token))]
    _add_views(app, supervisor, guard)
    _add_metrics(app, supervisor, [] if open_metrics else guard)
    _add_logs(app, supervisor, guard)
    add_orders(app, supervisor, operator, guard, shut_down)
    add_keys(app, keys, supervisor.link, supervisor.store, guard)
    add_events(app, supervisor.store, guard)
    return app


def _add_views(app: FastAPI, supervisor: Supervisor, guard: list[Any]) -> None:
    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        """The supervisor answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/admin/engines", dependencies=guard, tags=["engines"])
    async def engines() -> dict[str, list[dict[str, Any]]]:
        """Every engine and gateway."""
        return {"engines": supervisor.instances()}

    @app.get("/admin/engines/{engine}", dependencies=guard, tags=["engines"])
    async def engine(engine: str) -> dict[str, Any]:
        """One engine, with its command line and its latest events."""
        instance = supervisor.instance(engine)
        spec = instance.running.record.spec if instance.running else None
        return {
            **supervisor.describe(instance),
            "argv": list(spec.argv) if spec else None,
            "injected": list(spec.injected) if spec else None,
            "events": [event.model_dump() for event in supervisor.store.events(20, engine)],
        }

    @app.get("/admin/models", dependencies=guard, tags=["models"])
    async def models() -> dict[str, list[dict[str, Any]]]:
        """Every served model, loaded or not."""
        pools = supervisor.pools.values()
        return {"models": [describe_model(pool, supervisor.link) for pool in pools]}

    @app.get("/admin/memory", dependencies=guard, tags=["machine"])
    async def memory() -> dict[str, Any]:
        """The ledger: what every device has, what our engines were promised and hold; bytes."""
        return supervisor.keeper.account()

    @app.get("/admin/hardware", dependencies=guard, tags=["machine"])
    async def hardware() -> HardwareProfile:
        """The machine as it was probed at the start."""
        return supervisor.orders.hardware


def _add_metrics(app: FastAPI, supervisor: Supervisor, guard: list[Any]) -> None:
    @app.get("/metrics", dependencies=guard, tags=["machine"])
    async def metrics() -> Response:
        """Prometheus series of the control plane."""
        return Response(supervisor.metrics.render(), headers={"content-type": CONTENT_TYPE})


def _add_logs(app: FastAPI, supervisor: Supervisor, guard: list[Any]) -> None:
    @app.get("/admin/engines/{engine}/logs", dependencies=guard, tags=["engines"])
    async def logs(
        request: Request,
        engine: str,
        tail: Annotated[int, Query(ge=0, le=10_000)] = 200,
        follow: bool = False,
    ) -> Response:
        """The engine's output as text; `follow` keeps the answer open."""
        instance = supervisor.instance(engine)
        path = instance.log
        if path is None:
            raise NotFound(f"{engine} was never started, so it has no log")
        noise = instance.workload.noise
        if follow:
            lines = follow_file(path, tail, noise, lambda: supervisor.ended)
            return StreamingResponse(lines, media_type="text/plain")
        shown = quiet(read_tail(path, 100_000), noise)[-tail:] if tail else []
        return Response("".join(f"{line}\n" for line in shown), media_type="text/plain")


def quiet(lines: Iterable[str], noise: tuple[str, ...]) -> list[str]:
    """The lines that are not about our own probing."""
    return [line for line in lines if not any(word in line for word in noise)]


async def follow_file(
    path: Path, tail: int, noise: tuple[str, ...], ended: Callable[[], bool]
) -> AsyncIterator[str]:
    """The last lines of a file, then each line that is added, until `ended`.

    A file that was rotated begins anew. Lines are cut and made harmless as in `read_tail`.
    """
    position = path.stat().st_size if path.exists() else 0
    first = quiet(read_tail(path, 100_000, until=position), noise)[-tail:] if tail else []
    yield "".join(f"{line}\n" for line in first)
    lines = Lines()
    while not ended():
        size = path.stat().st_size if path.exists() else 0
        if size < position:
            position, lines = 0, Lines()
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                data = file.read(1 << 20)
            position += len(data)
            yield "".join(f"{line}\n" for line in quiet(lines.feed(data), noise))
        else:
            await asyncio.sleep(_FOLLOW_S)


async def _tell(_: Request, error: Exception) -> Response:
    if not isinstance(error, EngineRoomError):
        raise error
    return JSONResponse(error.envelope(), error.http_status)


async def _tell_invalid(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    if first.get("type") == "json_invalid":
        return await _tell(request, BadRequest("the body is not valid JSON"))
    field = str(first.get("loc", ("body",))[-1])
    if first.get("type") == "extra_forbidden":
        return await _tell(request, UnsupportedParameter(f"unknown field {field!r}", param=field))
    return await _tell(request, BadRequest(f"{field}: {first.get('msg', 'invalid')}", param=field))


async def _tell_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    problem: EngineRoomError = NotFound("no such path here; /docs lists them")
    if status == 400:
        problem = BadRequest("the body could not be read as JSON")
    if status == 405:
        problem = MethodNotAllowed("this path does not take that method; /docs lists them")
    return JSONResponse(problem.envelope(), status)
