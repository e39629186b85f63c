"""From a body of `/v1/messages` or `/v1/responses` to an order; engines speak these themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

from orchestrator.control import ModelRoute
from orchestrator.errors import NotFound
from orchestrator.gateway import anthropic, responses
from orchestrator.gateway.body import parse
from orchestrator.gateway.guard import Guard
from orchestrator.gateway.orders import Facts, Order, Reader
from orchestrator.gateway.places import Target
from orchestrator.gateway.plain import WholeGuard, WholePassing
from orchestrator.gateway.routing import Router
from orchestrator.gateway.shapes import Answer
from orchestrator.gateway.typed import MESSAGES, RESPONSES, Dialect, TypedGuard
from orchestrator.gateway.typed_shapes import (
    ResponsePassing,
    TypedPassing,
    WholeMessage,
    WholeResponse,
)

_SHARED = frozenset({"temperature", "top_p", "max_output_tokens"})


def _guard(answer: Answer, keep: bool, dialect: Dialect) -> Guard:
    return TypedGuard(answer, dialect)


def _target(router: Router, name: str | None, facts: Facts, path: str) -> Target:
    target = router.find(name)
    facts.may_use(target)
    if path not in target.route.routes:
        raise NotFound(f"the engine of {target.route.name} does not offer {path}")
    return target


def _filled(body: dict[str, Any], route: ModelRoute, names: dict[str, str]) -> dict[str, Any]:
    """With the model's defaults for what these APIs have too; `names` are those of their own."""
    said = {names.get(each, each): value for each, value in route.defaults.items()}
    return {**{name: said[name] for name in _SHARED & said.keys()}, **body}


def _messages(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(anthropic.MessagesRequest, data)
    target = _target(router, request.model, facts, anthropic.MESSAGES)
    asked = _filled(anthropic.upstream_body(request), target.route, {})
    body = {**asked, "stream": True, **target.call}
    name = target.served.name
    answer: Answer = TypedPassing(name) if request.stream else WholeMessage(name)
    guard = partial(_guard, dialect=MESSAGES)
    order = Order(target, anthropic.MESSAGES, body, answer, data, guard)
    order.keep = request.keep_alive
    return order


def _responses(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(responses.ResponsesRequest, data)
    target = _target(router, request.model, facts, responses.RESPONSES)
    names = {"max_new_tokens": "max_output_tokens"}
    asked = _filled(responses.upstream_body(request), target.route, names)
    body = {**asked, "stream": True, **target.call}
    name = target.served.name
    answer: Answer = ResponsePassing(name) if request.stream else WholeResponse(name)
    guard = partial(_guard, dialect=RESPONSES)
    order = Order(target, responses.RESPONSES, body, answer, data, guard)
    order.keep = request.keep_alive
    return order


def _count(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(anthropic.CountTokensRequest, data)
    target = _target(router, request.model, facts, anthropic.COUNT_TOKENS)
    body = {**anthropic.upstream_body(request), **target.call}
    answer = WholePassing(target.served.name)
    return Order(target, anthropic.COUNT_TOKENS, body, answer, data, WholeGuard, generates=False)


READERS: dict[str, Reader] = {
    anthropic.MESSAGES: _messages,
    anthropic.COUNT_TOKENS: _count,
    responses.RESPONSES: _responses,
}
"""The paths of the engines' other APIs."""
