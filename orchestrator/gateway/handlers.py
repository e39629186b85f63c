"""The generating endpoints: `/generate`, `/generate_stream`, `/v1/completions`, `/v1/chat/…`."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import BadRequest, RequestError
from orchestrator.gateway import openai
from orchestrator.gateway.asking import Ask, ask_for
from orchestrator.gateway.body import parse
from orchestrator.gateway.calls import Call, Caller, Order
from orchestrator.gateway.defaults import with_defaults
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.generate import GenerateRequest, result, to_completion
from orchestrator.gateway.keyring import Holder, KeyRing, Permit
from orchestrator.gateway.places import Target
from orchestrator.gateway.quarantine import fingerprint
from orchestrator.gateway.routing import Router
from orchestrator.gateway.sse import DONE, event
from orchestrator.gateway.stream import Chunk
from orchestrator.gateway.upstream import Upstream
from orchestrator.observability.metrics import GatewayMetrics

_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"


@dataclass
class Facts:
    """What is known of one request for its metrics; times in seconds since it arrived."""

    began: float
    model: str = "other"
    ttft: float | None = None
    tokens: int = 0
    holder: Holder | None = None
    permit: Permit | None = None
    prompt: int = 0
    pieces: int = 0


class Generating:
    """The handlers, over one router, one upstream and one maker of calls."""

    def __init__(
        self,
        router: Router,
        upstream: Upstream,
        metrics: GatewayMetrics,
        caller: Caller,
        keys: KeyRing,
    ) -> None:
        self._router, self._upstream, self._metrics = router, upstream, metrics
        self._caller, self._keys = caller, keys

    async def generate(self, exchange: Exchange, data: bytes, facts: Facts) -> None:
        """POST /generate."""
        request = parse(GenerateRequest, data)
        await self._generate(exchange, request, facts, fingerprint(data), stream=request.stream)

    async def generate_stream(self, exchange: Exchange, data: bytes, facts: Facts) -> None:
        """POST /generate_stream."""
        request = parse(GenerateRequest, data)
        await self._generate(exchange, request, facts, fingerprint(data), stream=True)

    async def completions(self, exchange: Exchange, data: bytes, facts: Facts) -> None:
        """POST /v1/completions."""
        request = parse(openai.CompletionRequest, data)
        await self._openai(exchange, request, facts, fingerprint(data), _COMPLETIONS)

    async def chat(self, exchange: Exchange, data: bytes, facts: Facts) -> None:
        """POST /v1/chat/completions."""
        request = parse(openai.ChatRequest, data)
        await self._openai(exchange, request, facts, fingerprint(data), _CHAT)

    async def _generate(
        self,
        exchange: Exchange,
        request: GenerateRequest,
        facts: Facts,
        sent: str,
        stream: bool,
    ) -> None:
        target = self._router.find(request.model)
        route = target.route
        facts.model = route.name
        self._router.keep(route.name, request.keep_alive)
        quirks, said = route.quirks, request.model_fields_set
        body = to_completion(request, quirks)
        body = with_defaults(body, said, route.defaults, quirks, quirks.completion_fields)
        body = {**body, **target.call}
        body = openai.asking_usage(body, route.quirks)
        ask = self._admit(exchange, facts, target, body, request)
        async with self._caller.call(Order(route.name, _COMPLETIONS, body, sent, ask)) as call:
            facts.prompt = ask.prompt_tokens
            parts: list[str] = []
            async with aclosing(call.stream.chunks()) as chunks:
                async for chunk in chunks:
                    if not chunk.text:
                        continue
                    self._first_token(facts)
                    if stream:
                        token = {"token": chunk.text, "index": len(parts)}
                        await exchange.send_event(event(token))
                    parts.append(chunk.text)
            seconds = time.monotonic() - call.began
            facts.tokens = await self._completion_tokens(call, parts)
            facts.prompt = _prompt_tokens(call, ask)
            call.lease.bill.tokens = facts.prompt + facts.tokens
            text = "".join(parts)
        reason = call.stream.guard.finish_reason or "stop"
        if stream:
            ttft = {"ttft": round(facts.ttft or seconds, 6)}
            last = {"done": True, **result(text, facts.tokens, seconds, reason, **ttft)}
            await exchange.send_event(event(last))
            await exchange.finish()
        else:
            name = {"model": target.served.name}
            await exchange.json(result(text, facts.tokens, seconds, reason, **name))

    async def _openai(
        self,
        exchange: Exchange,
        request: openai.CompletionRequest | openai.ChatRequest,
        facts: Facts,
        sent: str,
        path: str,
    ) -> None:
        target = self._router.find(request.model)
        route, name = target.route, target.served.name
        facts.model = route.name
        self._router.keep(route.name, request.keep_alive)
        if path not in route.routes:
            raise BadRequest(f"the engine of {route.name} does not offer {path}")
        quirks = route.quirks
        allowed = quirks.chat_fields if path == _CHAT else quirks.completion_fields
        body = openai.upstream_body(request, allowed)
        body = with_defaults(body, request.model_fields_set, route.defaults, quirks, allowed)
        body = {**body, **target.call}
        body = openai.asking_usage(body, quirks)
        values: list[dict[str, Any]] = []
        parts: list[str] = []
        ask = self._admit(exchange, facts, target, body, request)
        async with self._caller.call(Order(route.name, path, body, sent, ask)) as call:
            facts.prompt = ask.prompt_tokens
            async with aclosing(call.stream.chunks()) as chunks:
                async for chunk in chunks:
                    if chunk.text:
                        self._first_token(facts)
                        parts.append(chunk.text)
                    if not chunk.value["choices"]:
                        continue  # the engine's usage chunk: ours follows if it was asked for
                    if request.stream:
                        values = [{**chunk.value, "model": name}]
                        await exchange.send_event(_frame(chunk, name))
                    else:
                        values.append({**chunk.value, "model": name})
            facts.tokens = await self._completion_tokens(call, parts)
            facts.prompt = _prompt_tokens(call, ask)
            call.lease.bill.tokens = facts.prompt + facts.tokens
            counts = call.stream.guard.usage or openai.usage(call.prompt_tokens, facts.tokens)
        if not request.stream:
            await exchange.json(openai.whole_answer(values, counts))
            return
        if request.wants_usage:
            await exchange.send_event(event(openai.usage_chunk(values[-1], counts)))
        await exchange.finish(DONE)

    def _admit(
        self,
        exchange: Exchange,
        facts: Facts,
        target: Target,
        body: dict[str, Any],
        request: GenerateRequest | openai.CompletionRequest | openai.ChatRequest,
    ) -> Ask:
        """Let the request in by its key's limits; the permit is closed when it is counted."""
        holder, route = facts.holder or self._keys.identify(None), target.route
        ask = ask_for(
            route.name,
            body,
            exchange.headers,
            facts.began,
            key=holder.name,
            ceiling=holder.limits.priority,
            context=route.context,
            priority=request.priority,
            timeout=request.timeout,
            choice=len(route.replicas) > 1,
        )
        facts.permit = self._keys.admit(holder, ask, target.served.name, target.served.adapter)
        return ask

    def _first_token(self, facts: Facts) -> None:
        facts.pieces += 1
        if facts.ttft is None:
            facts.ttft = time.monotonic() - facts.began
            self._metrics.ttft.labels(facts.model).observe(facts.ttft)

    async def _completion_tokens(self, call: Call, parts: list[str]) -> int:
        """The engine's own count: its usage chunk, or its tokenizer's word on the text.

        What goes wrong after the answer was complete costs the count, not the answer: the number of
        events stands in.
        """
        counted = (call.stream.guard.usage or {}).get("completion_tokens")
        if isinstance(counted, int):
            return counted
        route, replica = call.lease.route, call.lease.replica
        if not parts or route.quirks.tokenize_path is None:
            return len(parts)
        try:
            return await self._upstream.count_tokens(route, replica, "".join(parts))
        except RequestError as error:
            self._caller.blame(call.lease, error)
            return len(parts)


def _prompt_tokens(call: Call, ask: Ask) -> int:
    """The engine's own count, or what it told before, or the estimate."""
    counted = (call.stream.guard.usage or {}).get("prompt_tokens")
    return counted if isinstance(counted, int) else call.prompt_tokens or ask.prompt_tokens


def _frame(chunk: Chunk, model: str) -> bytes:
    """The engine's event, byte for byte where it is one line and names the model as asked."""
    if "\n" in chunk.raw or "\r" in chunk.raw or chunk.value.get("model") != model:
        return event({**chunk.value, "model": model})
    return b"data: " + chunk.raw.encode() + b"\n\n"


Handler = Callable[[Exchange, bytes, Facts], Coroutine[Any, Any, None]]
