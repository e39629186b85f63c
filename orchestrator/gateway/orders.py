"""From a body to an order: which model, what its engine is asked, what the client gets of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from orchestrator.control import ModelRoute
from orchestrator.errors import BadRequest
from orchestrator.gateway import openai
from orchestrator.gateway.body import parse
from orchestrator.gateway.generate import GenerateRequest, to_completion
from orchestrator.gateway.quarantine import fingerprint
from orchestrator.gateway.routing import Router
from orchestrator.gateway.shapes import Answer, Passing, TokenStream, WholeAnswer, WholeText

_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"


@dataclass(eq=False)
class Order:
    """What an engine shall be asked, and the answer that is made of what it says."""

    route: ModelRoute
    path: str
    body: dict[str, Any]
    answer: Answer
    data: bytes

    @cached_property
    def fingerprint(self) -> str:
        """What the client's body is known by."""
        return fingerprint(self.data)


class Facts(Protocol):
    """What is known of a request, even of one that is refused."""

    model: str


def _generate(router: Router, data: bytes, facts: Facts, stream: bool) -> Order:
    request = parse(GenerateRequest, data)
    target = router.find(request.model)
    route = target.route
    facts.model = route.name
    router.keep(route.name, request.keep_alive)
    body = {**to_completion(request, route.quirks), **target.call}
    body = openai.asking_usage(body, route.quirks)
    plain = WholeText(target.served.name)
    answer: Answer = TokenStream() if stream or request.stream else plain
    return Order(route, _COMPLETIONS, body, answer, data)


def _openai(
    router: Router,
    data: bytes,
    facts: Facts,
    model: type[openai.CompletionRequest] | type[openai.ChatRequest],
    path: str,
) -> Order:
    request = parse(model, data)
    target = router.find(request.model)
    route, name = target.route, target.served.name
    facts.model = route.name
    router.keep(route.name, request.keep_alive)
    if path not in route.routes:
        raise BadRequest(f"the engine of {route.name} does not offer {path}")
    quirks = route.quirks
    allowed = quirks.chat_fields if path == _CHAT else quirks.completion_fields
    body = {**openai.upstream_body(request, allowed), **target.call}
    body = openai.asking_usage(body, quirks)
    answer: Answer = Passing(name, request.wants_usage) if request.stream else WholeAnswer(name)
    return Order(route, path, body, answer, data)


Reader = Callable[[Router, bytes, Facts], Order]

READERS: dict[str, Reader] = {
    "/generate": partial(_generate, stream=False),
    "/generate_stream": partial(_generate, stream=True),
    _COMPLETIONS: partial(_openai, model=openai.CompletionRequest, path=_COMPLETIONS),
    _CHAT: partial(_openai, model=openai.ChatRequest, path=_CHAT),
}
"""The paths that generate."""
