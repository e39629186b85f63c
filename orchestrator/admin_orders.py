"""The orders of the control API: what an operator may set going, each a POST."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends as Guard
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from engine_launchers.base import EnginePlan
from orchestrator.supervision.operator import Operator
from orchestrator.supervision.pool import Pool
from orchestrator.supervision.supervisor import Supervisor


class DrainOrder(BaseModel):
    """How long requests in flight may take before the engine is stopped; unset: as configured."""

    model_config = ConfigDict(extra="forbid")

    drain_s: float | None = Field(None, ge=0, le=86_400, allow_inf_nan=False)


class ScaleOrder(BaseModel):
    """How many engines a model shall have."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(ge=1, le=64)


class SleepOrder(BaseModel):
    """How deep: 1 keeps the weights in RAM, 2 drops them."""

    model_config = ConfigDict(extra="forbid")

    level: int = Field(1, ge=1, le=2)


class Accepted(BaseModel):
    """What was set going; the state of the model's engines tells how far it is."""

    status: str = "accepted"
    model: str
    engine: str
    follow: str


def add_orders(
    app: FastAPI,
    supervisor: Supervisor,
    operator: Operator,
    guard: list[Guard],
    shut_down: Callable[[], None],
) -> None:
    """Add the paths under /admin that change something."""
    _add_model_orders(app, operator, guard)
    _add_machine_orders(app, supervisor, operator, guard, shut_down)


def _accepted(pool: Pool) -> Accepted:
    engine = pool.instances[0].name if pool.instances else f"{pool.name}-0"
    return Accepted(model=pool.name, engine=engine, follow=f"/admin/engines/{engine}")


def _add_model_orders(app: FastAPI, operator: Operator, guard: list[Guard]) -> None:
    models = APIRouter(prefix="/admin/models/{model}", dependencies=guard, tags=["models"])

    @models.get("/plan")
    async def plan(model: str) -> EnginePlan:
        """The plan in use, with its reasons and what was refused."""
        return operator.plan(model)

    @models.post("/restart", status_code=202)
    async def restart(model: str, order: DrainOrder | None = None) -> Accepted:
        """Replace its engines: the new one is ready before the old one drains, if memory allows."""
        return _accepted(operator.restart(model, order.drain_s if order else None))

    @models.post("/stop", status_code=202)
    async def stop(model: str, order: DrainOrder | None = None) -> Accepted:
        """Drain and stop; requests get 503 until it is started again."""
        return _accepted(operator.stop(model, order.drain_s if order else None))

    @models.post("/start", status_code=202)
    async def start(model: str) -> Accepted:
        """Start what was stopped or has failed: the same as load."""
        return _accepted(operator.load(model))

    @models.post("/load", status_code=202)
    async def load(model: str) -> Accepted:
        """Load what is not loaded; others leave for it as they would for a request."""
        return _accepted(operator.load(model))

    @models.post("/unload", status_code=202)
    async def unload(model: str, order: DrainOrder | None = None) -> Accepted:
        """Drain and stop; the next request loads it again."""
        return _accepted(operator.unload(model, order.drain_s if order else None))

    @models.post("/sleep", status_code=202)
    async def sleep(model: str, order: SleepOrder | None = None) -> Accepted:
        """Put its engines to sleep, where they can; a request wakes them."""
        return _accepted(operator.sleep(model, order.level if order else 1))

    @models.post("/wake", status_code=202)
    async def wake(model: str) -> Accepted:
        """Wake its engines: the same as load."""
        return _accepted(operator.load(model))

    @models.post("/scale", status_code=202)
    async def scale(model: str, order: ScaleOrder) -> Accepted:
        """Have so many engines of it; those that are too many drain."""
        return _accepted(operator.scale(model, order.replicas))

    @models.post("/pin", status_code=202)
    async def pin(model: str) -> Accepted:
        """Never unload it for another model's sake."""
        return _accepted(operator.pin(model, True))

    @models.post("/unpin", status_code=202)
    async def unpin(model: str) -> Accepted:
        """Allow again that it leaves."""
        return _accepted(operator.pin(model, False))

    app.include_router(models)


def _add_machine_orders(
    app: FastAPI,
    supervisor: Supervisor,
    operator: Operator,
    guard: list[Guard],
    shut_down: Callable[[], None],
) -> None:
    @app.post(
        "/admin/engines/{engine}/drain", status_code=202, dependencies=guard, tags=["engines"]
    )
    async def drain(engine: str, order: DrainOrder | None = None) -> dict[str, str]:
        """Let one engine finish its requests and stop it; other replicas serve on."""
        operator.drain(engine, order.drain_s if order else None)
        return {"status": "accepted", "engine": engine, "follow": f"/admin/engines/{engine}"}

    @app.post("/admin/plan", dependencies=guard, tags=["machine"])
    async def what_if(wish: dict[str, JsonValue]) -> EnginePlan:
        """What would run with these keys of a model, if our engines made room. Starts nothing."""
        return await supervisor.orders.what_if(wish)

    @app.post("/admin/reload", dependencies=guard, tags=["machine"])
    async def reload() -> dict[str, Any]:
        """Read the settings anew; only what they changed is touched. Bad ones change nothing."""
        return await operator.reload()

    @app.post("/admin/shutdown", status_code=202, dependencies=guard, tags=["machine"])
    async def shutdown(order: DrainOrder | None = None) -> dict[str, str]:
        """Drain and stop everything, then end."""
        supervisor.shutdown_drain_s = order.drain_s if order else None
        shut_down()
        return {"status": "accepted"}
