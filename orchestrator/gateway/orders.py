"""From a body to an order: which model, what its engine is asked, what the client gets of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from orchestrator.control import ModelRoute
from orchestrator.errors import BadRequest
from orchestrator.gateway import openai, quick
from orchestrator.gateway.body import parse
from orchestrator.gateway.defaults import with_defaults
from orchestrator.gateway.generate import GenerateRequest, to_completion
from orchestrator.gateway.guard import Guard, StreamGuard
from orchestrator.gateway.places import Target
from orchestrator.gateway.quarantine import fingerprint
from orchestrator.gateway.routing import Router
from orchestrator.gateway.shapes import Answer, Passing, TokenStream, WholeAnswer, WholeText

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


GuardMaker = Callable[[Answer, bool], Guard]


@dataclass(eq=False)
class Order:
    """What an engine shall be asked, and the answer that is made of what it says.

    `priority`, `timeout` and `keep` (seconds) are what the body says of them. `generates` False:
    nothing is written, the answer is one object. `calls` False: nothing is asked, the model only
    has to be there; without `waits` not even that.
    """

    target: Target
    path: str
    body: dict[str, Any]
    answer: Answer
    data: bytes
    guard: GuardMaker = StreamGuard
    generates: bool = True
    calls: bool = True
    waits: bool = True
    priority: int | None = None
    timeout: float | None = None
    keep: float | None = None

    @property
    def route(self) -> ModelRoute:
        """The model's."""
        return self.target.route

    @cached_property
    def fingerprint(self) -> str:
        """What the client's body is known by."""
        return fingerprint(self.data)


class Facts(Protocol):
    """What is known of a request, even of one that is refused."""

    model: str

    def may_use(self, target: Target) -> None:
        """Note the model. Raises UnknownModel where the request's key does not allow it."""


def _generate(router: Router, data: bytes, facts: Facts, stream: bool) -> Order:
    usual = quick.accepted(data, quick.GENERATE, "prompt")
    request = parse(GenerateRequest, data) if usual is None else _constructed(usual)
    target = router.find(request.model)
    route = target.route
    facts.may_use(target)
    quirks = route.quirks
    body = to_completion(request, quirks)
    if route.defaults:
        said = request.model_fields_set
        body = with_defaults(body, said, route.defaults, quirks, quirks.completion_fields)
    body = openai.asking_usage({**body, **target.call}, quirks)
    plain = WholeText(target.served.name)
    answer: Answer = TokenStream() if stream or request.stream else plain
    order = Order(target, COMPLETIONS, body, answer, data)
    order.priority, order.timeout = request.priority, request.timeout
    order.keep = request.keep_alive
    return order


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
    facts.may_use(target)
    if path not in route.routes:
        raise BadRequest(f"the engine of {route.name} does not offer {path}")
    quirks = route.quirks
    allowed = quirks.chat_fields if chat else quirks.completion_fields
    said: Collection[str] = ()
    if usual is not None and usual.keys() <= allowed:
        if route.defaults:
            said = set(usual)
        body = usual
        body["stream"] = True
    else:
        request = request or parse(model, data)
        said = request.model_fields_set
        body = openai.upstream_body(request, allowed)
    if route.defaults:
        body = with_defaults(body, said, route.defaults, quirks, allowed)
    body.update(target.call)
    if quirks.usage_on_request:
        body["stream_options"] = openai.USAGE_ASKED
    served = target.served.name
    answer: Answer = Passing(served, usage) if stream else WholeAnswer(served)
    order = Order(target, path, body, answer, data)
    order.keep = keep
    if request is not None:
        order.priority, order.timeout = request.priority, request.timeout
    return order


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
