"""The names under which a plan can be asked, and what each means to the engine."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import JsonValue

from engine_launchers.base import EnginePlan, Served
from engine_launchers.model import Adapter

Call = tuple[str, dict[str, JsonValue]]
"""The engine's own name of a model, and the body fields that go with it."""
How = Callable[[EnginePlan, int, Adapter], Call]


def by_name(plan: EnginePlan, at: int, adapter: Adapter) -> Call:
    """For engines that take an adapter's name as the model's."""
    return adapter.name, {}


def served(
    plan: EnginePlan, call: How, plain: dict[str, JsonValue] | None = None
) -> tuple[Served, ...]:
    """The model, its aliases, then its adapters; `call` says how the engine is asked for one.

    An adapter that is applied always stands behind the model's own names as well. `plain` are the
    fields that a request without any adapter needs.
    """
    model = plan.model
    own = Served(name=model.id, model=plan.upstream_name or model.id, fields=plain or {})
    named: list[Served] = []
    for at, adapter in enumerate(model.adapters):
        word, fields = call(plan, at, adapter)
        named.append(Served(name=adapter.name, model=word, fields=fields, adapter=adapter.name))
        if adapter.always:
            own = named[-1].model_copy(update={"name": model.id})
    again = (own.model_copy(update={"name": alias}) for alias in plan.aliases)
    return (own, *again, *named)
