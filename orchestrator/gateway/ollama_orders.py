"""From a body of Ollama's API to an order."""

from __future__ import annotations

import time
from functools import partial

from orchestrator.control import ON_DEMAND
from orchestrator.errors import BadRequest
from orchestrator.gateway import openai
from orchestrator.gateway.body import check, parse
from orchestrator.gateway.defaults import with_defaults
from orchestrator.gateway.ollama import (
    LATEST,
    OllamaChatRequest,
    OllamaGenerateRequest,
    only_loads,
    to_openai,
)
from orchestrator.gateway.ollama_answers import Told
from orchestrator.gateway.ollama_shapes import OllamaAnswer, OllamaLoaded
from orchestrator.gateway.orders import CHAT, COMPLETIONS, Facts, Order, Reader
from orchestrator.gateway.places import Target
from orchestrator.gateway.routing import Router


def target_of(router: Router, name: str) -> Target:
    """What a name stands for, with or without the tag that Ollama adds. Raises as `find` does."""
    known = {each.served.name for each in router.targets()}
    bare = name.removesuffix(LATEST)
    return router.find(bare if name not in known and bare in known else name)


def _ollama(
    router: Router,
    data: bytes,
    facts: Facts,
    model: type[OllamaGenerateRequest] | type[OllamaChatRequest],
) -> Order:
    request = parse(model, data)
    target = target_of(router, request.model)
    route = target.route
    facts.may_use(target)
    chats = CHAT in route.routes and route.chat_template is not None
    told = Told(request.model, model is OllamaChatRequest)
    if only_loads(request):
        unload = request.keep_alive == 0
        reason = "unload" if unload else "load"
        answer = OllamaLoaded(told, reason, request.streams, time.time)
        gone = unload and route.state in ON_DEMAND
        order = Order(target, COMPLETIONS, {"prompt": ""}, answer, data, calls=False)
        order.keep, order.waits = request.keep_alive, not gone
        return order
    asked = to_openai(request, chats)
    if "repeat_penalty" in asked:
        asked[route.quirks.repetition_field] = asked.pop("repeat_penalty")
    path = CHAT if "messages" in asked else COMPLETIONS
    if path not in route.routes:
        raise BadRequest(f"the engine of {route.name} does not offer chat")
    quirks = route.quirks
    if path == CHAT:
        body = openai.upstream_body(check(openai.ChatRequest, asked), quirks.chat_fields)
    else:
        plain = check(openai.CompletionRequest, asked)
        body = openai.upstream_body(plain, quirks.completion_fields)
    if route.defaults:
        allowed = quirks.chat_fields if path == CHAT else quirks.completion_fields
        said = set(asked) | ({"max_tokens"} if "num_predict" in (request.options or {}) else set())
        body = with_defaults(body, said, route.defaults, quirks, allowed)
    body = openai.asking_usage({**body, **target.call}, quirks)
    answer_ = OllamaAnswer(told, request.streams, time.time)
    order = Order(target, path, body, answer_, data)
    order.keep = request.keep_alive
    return order


READERS: dict[str, Reader] = {
    "/api/generate": partial(_ollama, model=OllamaGenerateRequest),
    "/api/chat": partial(_ollama, model=OllamaChatRequest),
}
"""Ollama's paths that generate."""
