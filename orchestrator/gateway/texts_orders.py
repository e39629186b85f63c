"""From a body about a text to an order: what is asked is one object, and so is the answer."""

from __future__ import annotations

from functools import partial

from engine_launchers.traits import TokenizerTraits
from orchestrator.errors import NotFound
from orchestrator.gateway import texts
from orchestrator.gateway.body import parse
from orchestrator.gateway.orders import Facts, Order, Reader
from orchestrator.gateway.places import Target
from orchestrator.gateway.plain import WholeGuard, WholePassing
from orchestrator.gateway.routing import Router


def _target(router: Router, name: str | None, facts: Facts) -> Target:
    target = router.find(name)
    facts.may_use(target)
    return target


def _traits(target: Target, path: str) -> TokenizerTraits:
    traits = target.route.quirks.tokenizer
    if traits is None:
        raise NotFound(f"the engine of {target.route.name} does not offer {path}")
    return traits


def _tokenize(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(texts.TokenizeRequest, data)
    target = _target(router, request.model, facts)
    traits = _traits(target, texts.TOKENIZE)
    body = {**texts.tokenize_body(request, traits), **target.call}
    answer = texts.Made(partial(texts.tokens_of, context=target.route.context))
    order = Order(target, traits.tokenize, body, answer, data, WholeGuard, generates=False)
    order.keep = request.keep_alive
    return order


def _detokenize(router: Router, data: bytes, facts: Facts) -> Order:
    request = parse(texts.DetokenizeRequest, data)
    target = _target(router, request.model, facts)
    traits = _traits(target, texts.DETOKENIZE)
    body = {"tokens": request.tokens, **target.call}
    answer = texts.Made(partial(texts.text_of, key=traits.tells))
    order = Order(target, traits.detokenize, body, answer, data, WholeGuard, generates=False)
    order.keep = request.keep_alive
    return order


def _passed(
    router: Router,
    data: bytes,
    facts: Facts,
    model: type[texts.EmbeddingsRequest] | type[texts.RerankRequest],
    path: str,
) -> Order:
    request = parse(model, data)
    target = _target(router, request.model, facts)
    if path not in target.route.routes:
        raise NotFound(f"the engine of {target.route.name} does not offer {path}")
    body = {**texts.upstream_body(request), **target.call}
    answer = WholePassing(target.served.name)
    order = Order(target, path, body, answer, data, WholeGuard, generates=False)
    order.keep = request.keep_alive
    return order


READERS: dict[str, Reader] = {
    texts.TOKENIZE: _tokenize,
    texts.DETOKENIZE: _detokenize,
    texts.EMBEDDINGS: partial(_passed, model=texts.EmbeddingsRequest, path=texts.EMBEDDINGS),
    texts.RERANK: partial(_passed, model=texts.RerankRequest, path=texts.RERANK),
}
"""Their paths."""
