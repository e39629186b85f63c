"""From a body to an order: which model, what its engine is asked, what the client gets of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from orchestrator.control import ModelRoute
from orchestrator.errors import BadRequest
from orchestrator.gateway import openai, quick
from orchestrator.gateway.body import parse
from orchestrator.gateway.generate import GenerateRequest, to_completion
from orchestrator.gateway.guard import Guard, StreamGuard
from orchestrator.gateway.quarantine import fingerprint
from orchestrator.gateway.routing import Router
from orchestrator.gateway.shapes import Answer, Passing, TokenStream, WholeAnswer, WholeText

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


GuardMaker = Callable[[Answer, bool], Guard]


@dataclass(eq=False)
class Order:
    """What an engine shall be asked, and the answer that is made of what it says.

    `calls` False: nothing is asked, the model only has to be there; without `waits` not even that.
    """

    route: ModelRoute
    path: str
    body: dict[str, Any]
    answer: Answer
    data: bytes
    guard: GuardMaker = StreamGuard
    calls: bool = True
    waits: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """What the client's body is known by."""
        return fingerprint(self.data)


class Facts(Protocol):
    """What is known of a request, even of one that is refused."""

    model: str


def _generate(router: Router, data: bytes, facts: Facts, stream: bool) -> Order:
    usual = quick.accepted(data, quick.GENERATE, "prompt")
    request = parse(GenerateRequest, data) if usual is None else _constructed(usual)
    target = router.find(request.model)
    route = target.route
    facts.model = route.name
    router.keep(route.name, request.keep_alive)
    body = {**to_completion(request, route.quirks), **target.call}
    body = openai.asking_usage(body, route.quirks)
    plain = WholeText(target.served.name)
    answer: Answer = TokenStream() if stream or request.stream else plain
    return Order(route, COMPLETIONS, body, answer, data)


def _constructed(fields: dict[str, Any]) -> GenerateRequest:
    return GenerateRequest.model_construct(set(fields), **fields)


def _openai(
    router: Router,
    data: bytes,
    facts: Facts,
    model: type[openai.CompletionRequest] | type[openai.ChatRequest],
    path: str,
) -> Order:
    chat = model is openai.ChatRequest
    usual = quick.accepted(data, *(_CHAT_FIELDS if chat else _COMPLETION_FIELDS))
    request: openai.CompletionRequest | openai.ChatRequest | None = None
    if usual is None:
        request = parse(model, data)
        stream, usage = bool(request.stream), request.wants_usage
        name, keep = request.model, request.keep_alive
    else:
        stream, name, keep = usual.pop("stream", False), usual.pop("model", None), None
        usage = usual.pop("stream_options", {}).get("include_usage", False)
    target = router.find(name)
    route = target.route
    facts.model = route.name
    router.keep(route.name, keep)
    if path not in route.routes:
        raise BadRequest(f"the engine of {route.name} does not offer {path}")
    quirks = route.quirks
    allowed = quirks.chat_fields if chat else quirks.completion_fields
    if usual is not None and usual.keys() <= allowed:
        body = {**usual, "stream": True}
    else:
        body = openai.upstream_body(request or parse(model, data), allowed)
    body = openai.asking_usage({**body, **target.call}, quirks)
    served = target.served.name
    answer: Answer = Passing(served, usage) if stream else WholeAnswer(served)
    return Order(route, path, body, answer, data)


_CHAT_FIELDS = (quick.CHAT, "messages")
_COMPLETION_FIELDS = (quick.COMPLETION, "prompt")
Reader = Callable[[Router, bytes, Facts], Order]

OURS: dict[str, Reader] = {
    "/generate": partial(_generate, stream=False),
    "/generate_stream": partial(_generate, stream=True),
    COMPLETIONS: partial(_openai, model=openai.CompletionRequest, path=COMPLETIONS),
    CHAT: partial(_openai, model=openai.ChatRequest, path=CHAT),
}
"""Our own paths, and OpenAI's."""
