"""From a body of `/v1/messages` or `/v1/responses` to an order; engines speak these themselves."""

from __future__ import annotations

from functools import partial

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
from orchestrator.gateway.typed_shapes import TypedPassing, WholeMessage, WholeResponse


def _guard(answer: Answer, keep: bool, dialect: Dialect) -> Guard:
    return TypedGuard(answer, dialect)


def _target(router: Router, name: str | None, facts: Facts, path: str) -> Target:
    target = router.find(name)
    facts.model = target.route.name
    if path not in target.route.routes:
        raise NotFound(f"the engine of {target.route.name} does not offer {path}")
    return target


def _messages(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(anthropic.MessagesRequest, data)
    target = _target(router, request.model, facts, anthropic.MESSAGES)
    router.keep(target.route.name, request.keep_alive)
    body = {**anthropic.upstream_body(request), "stream": True, **target.call}
    name = target.served.name
    answer: Answer = TypedPassing(name) if request.stream else WholeMessage(name)
    guard = partial(_guard, dialect=MESSAGES)
    return Order(target, anthropic.MESSAGES, body, answer, data, guard)


def _responses(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(responses.ResponsesRequest, data)
    target = _target(router, request.model, facts, responses.RESPONSES)
    router.keep(target.route.name, request.keep_alive)
    body = {**responses.upstream_body(request), "stream": True, **target.call}
    name = target.served.name
    answer: Answer = TypedPassing(name) if request.stream else WholeResponse(name)
    guard = partial(_guard, dialect=RESPONSES)
    return Order(target, responses.RESPONSES, body, answer, data, guard)


def _count(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(anthropic.CountTokensRequest, data)
    target = _target(router, request.model, facts, anthropic.COUNT_TOKENS)
    body = {**anthropic.upstream_body(request), **target.call}
    answer = WholePassing(target.served.name)
    return Order(target, anthropic.COUNT_TOKENS, body, answer, data, WholeGuard)


READERS: dict[str, Reader] = {
    anthropic.MESSAGES: _messages,
    anthropic.COUNT_TOKENS: _count,
    responses.RESPONSES: _responses,
}
"""The paths of the engines' other APIs."""
