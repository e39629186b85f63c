"""The way to the engines: one streamed call, and questions to an engine's tokenizer."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.control import ModelRoute, Replica
from orchestrator.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineBusy,
    EngineError,
    GatewayBusy,
    QueueFull,
    RequestError,
    UpstreamBroken,
    UpstreamInvalid,
    UpstreamTimeout,
)
from orchestrator.gateway.places import Lease, Tally
from orchestrator.gateway.solo import Run
from orchestrator.gateway.sse import SseReader
from orchestrator.gateway.stream import Chunk, StreamGuard

_log = logging.getLogger("engineroom.gateway")
_BUFFER = 128 * 1024
_NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
_ERROR_BODY_LIMIT = 64 * 1024
_AFTER_FINISH_S = 2.0  # for a usage chunk and `[DONE]`
_CHARACTERS_PER_TOKEN = 64  # more than any tokenizer reaches on average
_PREFILL_S_PER_TOKEN = 0.2  # slower than any engine worth waiting for


_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL}

# How engines say that a prompt is too long: llama_cpp and ours, llama-server, vLLM.
_TOO_LONG = ("context_length", "exceed_context_size", "maximum context length")


class NotReached(UpstreamBroken):
    """The engine could not be reached: nothing was sent, so another try is safe."""


class EngineStream:
    """The chunks of one running call. Iterate `chunks()` to its end; then `guard` has the facts."""

    def __init__(
        self, response: httpx.Response, first_s: float, next_s: float, tally: Tally, run: Run
    ) -> None:
        self._response, self._tally, self._run = response, tally, run
        self._first_s, self._next_s = first_s, next_s
        self._events = self._payloads()
        self._first: Chunk | None = None
        self.guard = StreamGuard()

    async def begin(self) -> None:
        """Wait for the first chunk. Raises what came instead of it."""
        self._first = await self._next(self._first_s)

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Each chunk as it comes. Raises what ended the stream before its time.

        Once the answer is complete nothing can spoil it: what an engine does after its
        finish_reason is not the client's concern.
        """
        chunk = self._first
        while chunk is not None:
            yield chunk
            finished = self.guard.finish_reason is not None
            chunk = await self._next(_AFTER_FINISH_S if finished else self._next_s)

    async def close(self) -> None:
        """Stop reading and close the connection."""
        await self._events.aclose()
        await self._response.aclose()

    async def _next(self, limit: float) -> Chunk | None:
        """The next chunk, None at the legal end."""
        if self.guard.done:
            return None
        finished, asked = self.guard.finish_reason is not None, time.monotonic()
        try:
            with self._tally.owing():
                async with asyncio.timeout(limit):
                    payload = await anext(self._events, None)
            self._tally.relayed += 1
            chunk = None if payload is None else self.guard.feed(payload)
        except (TimeoutError, UpstreamBroken, UpstreamInvalid) as error:
            if self.guard.finish_reason is not None:
                return None
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout(f"the engine sent nothing for {limit:g} s") from None
            raise
        if payload is None:
            self.guard.close()
        if chunk is not None and not finished:
            self._run.came(asked, time.monotonic(), bool(chunk.text))
        return chunk

    @property
    def counted(self) -> int | None:
        """The engine's own count of the answer's tokens, where it has told it."""
        counted = (self.guard.usage or {}).get("completion_tokens")
        return counted if isinstance(counted, int) else None

    async def _payloads(self) -> AsyncGenerator[str, None]:
        reader = SseReader()
        try:
            async for data in self._response.aiter_raw():
                for payload in reader.feed(data):
                    yield payload
            for payload in reader.feed(b"", final=True):
                yield payload
        except httpx.HTTPError as error:
            _log.info("stream broke: %s: %s", type(error).__name__, error)
            raise UpstreamBroken(
                "the engine's connection broke before its answer was complete"
            ) from error
        if reader.half_frame:
            raise UpstreamBroken("the engine's connection ended in the middle of an event")


class Upstream:
    """One client for all engines of this gateway."""

    def __init__(self, stall_timeout_s: float) -> None:
        self._stall_s = stall_timeout_s
        self._extra_tokens: dict[tuple[str, int], int] = {}
        # Idle connections are dropped before an engine's own 5 s keep-alive can race with us.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        timeout = httpx.Timeout(None, connect=2.0)
        # An engine shall notice soon that its reader's reader has stopped.
        buffer = (socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        transport = httpx.AsyncHTTPTransport(
            limits=limits, trust_env=False, socket_options=[buffer, _NO_DELAY]
        )
        self._client = httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    @asynccontextmanager
    async def stream(
        self, lease: Lease, path: str, body: dict[str, Any], prompt_tokens: int
    ) -> AsyncIterator[EngineStream]:
        """Call the engine and wait for its first chunk; leaving the context frees the engine.

        Raises NotReached before anything was sent, and the engine's refusal as an error of ours.
        """
        with lease.tally.solo.run() as run:
            async with self._opened(lease, path, body, prompt_tokens, run) as stream:
                yield stream
            if stream.guard.finish_reason is not None:
                lease.tally.solo.add(run, stream.counted)

    @asynccontextmanager
    async def _opened(
        self, lease: Lease, path: str, body: dict[str, Any], prompt_tokens: int, run: Run
    ) -> AsyncIterator[EngineStream]:
        first_s = self._stall_s + prompt_tokens * _PREFILL_S_PER_TOKEN
        request = self._client.build_request("POST", lease.replica.base_url + path, json=body)
        try:
            with lease.tally.owing():
                async with asyncio.timeout(first_s):
                    response = await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _not_reached(error) from error
        except TimeoutError:
            raise UpstreamTimeout(f"the engine did not answer for {first_s:g} s") from None
        except httpx.HTTPError as error:
            _log.info("call broke: %s: %s", type(error).__name__, error)
            raise UpstreamBroken("the engine's connection broke before its answer began") from error
        try:
            if response.status_code != 200:
                raise await self._refusal(response)
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise UpstreamInvalid(f"the engine answered {kind or 'no content type'}")
            stream = EngineStream(response, first_s, self._stall_s, lease.tally, run)
            try:
                await stream.begin()
                yield stream
            finally:
                await stream.close()
        finally:
            await response.aclose()

    async def _refusal(self, response: httpx.Response) -> RequestError:
        try:
            async with asyncio.timeout(self._stall_s):
                return await _refusal(response)
        except TimeoutError:
            return UpstreamTimeout("the engine stalled in its error answer")

    async def count_tokens(self, route: ModelRoute, replica: Replica, text: str) -> int:
        """Tokens of `text` as the engine's own tokenizer has them, without its bos."""
        key = (replica.id, replica.generation)
        if key not in self._extra_tokens:
            extra = await self._ask_count(route, replica, "")
            others = {k: v for k, v in self._extra_tokens.items() if k[0] != replica.id}
            self._extra_tokens = {**others, key: extra}
        return await self._ask_count(route, replica, text) - self._extra_tokens[key]

    @staticmethod
    def refuse_hopeless(route: ModelRoute, body: dict[str, Any]) -> None:
        """Raise ContextLengthExceeded for what no tokenizer could make short enough.

        Asked before a lease, so that a huge prompt costs nobody else's time.
        """
        size = _characters(body)
        if size > route.context * _CHARACTERS_PER_TOKEN:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {route.context} tokens, the prompt has "
                f"{size} characters: shorten it",
                param="prompt" if "prompt" in body else "messages",
            )

    @staticmethod
    def most_tokens(route: ModelRoute, body: dict[str, Any]) -> int:
        """What a prompt that nobody has counted may have: the engine gets the time for it."""
        return min(route.context, _characters(body))

    async def prompt_tokens(self, route: ModelRoute, replica: Replica, body: dict[str, Any]) -> int:
        """Tokens of the prompt that the engine will see, its bos included; 0 where it tells later.

        Raises ContextLengthExceeded where no room is left for an answer.
        """
        if route.quirks.tokenize_path is None:
            return 0
        if "prompt" in body:
            count = await self._ask_count(route, replica, body["prompt"])
        else:  # a template writes the bos itself, and the engine adds none
            text = render_chat(route, body["messages"], body.get("tools"))
            count = 0 if text is None else await self.count_tokens(route, replica, text)
        if count >= route.context:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {route.context} tokens, the prompt has "
                f"{count}: shorten it",
                param="prompt" if "prompt" in body else "messages",
            )
        return count

    async def _ask_count(self, route: ModelRoute, replica: Replica, text: str) -> int:
        url = replica.base_url + (route.quirks.tokenize_path or "")
        try:
            async with asyncio.timeout(self._stall_s):
                answer = await self._client.post(url, json={"model": route.name, "input": text})
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _not_reached(error) from error
        except TimeoutError:
            raise UpstreamTimeout("the engine's tokenizer does not answer") from None
        except httpx.HTTPError as error:
            _log.info("call broke: %s: %s", type(error).__name__, error)
            raise UpstreamBroken("the engine's connection broke before its answer began") from error
        try:
            return int(answer.json()["count"])
        except (ValueError, KeyError, TypeError) as error:
            raise UpstreamInvalid("the engine's tokenizer gave no count") from error


def _not_reached(error: BaseException) -> RequestError:
    """Whose fault it is that there is no connection: ours where we have no descriptor for it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OURS:
            return GatewayBusy("the gateway has no file descriptors left; try again")
        cause = cause.__cause__ or cause.__context__
    return NotReached("the engine does not take connections")


def _characters(body: dict[str, Any]) -> int:
    """Of the prompt, or of all messages."""
    texts = [body["prompt"]] if "prompt" in body else [m["content"] for m in body["messages"]]
    return sum(len(text) for text in texts)


def render_chat(route: ModelRoute, messages: list[dict[str, Any]], tools: Any) -> str | None:
    """The prompt that the model's chat template makes of `messages`, to count its tokens.

    None where it cannot be rendered here: the engine is the judge then. Raises BadRequest for what
    the template itself refuses.
    """

    def refuse(message: str) -> None:
        raise BadRequest(f"the model's chat template refuses: {message}", param="messages")

    if route.chat_template is None:
        return "\n".join(str(message.get("content") or "") for message in messages)
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        return jinja.from_string(route.chat_template).render(
            messages=messages,
            bos_token=route.bos_token or "",
            eos_token=route.eos_token or "",
            add_generation_prompt=True,
            tools=tools,
            raise_exception=refuse,
            strftime_now=time.strftime,
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        _log.info("model=%s chat template not rendered, prompt not counted: %s", route.name, error)
        return None


async def _refusal(response: httpx.Response) -> RequestError:
    """The engine's error answer as one of ours; its words only where they are about the request."""
    data = b""
    with suppress(httpx.HTTPError):  # an engine that dies in its own error text has said enough
        async for part in response.aiter_raw():
            data += part
            if len(data) > _ERROR_BODY_LIMIT:
                break
    try:
        error = json.loads(data).get("error", {})
    except (ValueError, AttributeError):
        error = {}
    error = error if isinstance(error, dict) else {}
    message = " ".join(str(error.get("message", "")).split())[:300]
    status = response.status_code
    told = f"{error.get('code')} {error.get('type')} {message}"
    if status == 400 and any(word in told for word in _TOO_LONG):
        return ContextLengthExceeded(message or "the prompt is too long")
    if status in (400, 422):
        return BadRequest(f"the engine refuses the request: {message or f'HTTP {status}'}")
    if status == 429:
        return QueueFull("the engine's own queue is full", retry_after=_retry_after(response))
    if status == 503:
        return EngineBusy("the engine takes nothing now", retry_after=_retry_after(response))
    return EngineError(f"the engine answered HTTP {status}")


def _retry_after(response: httpx.Response) -> float:
    """The engine's own word, in seconds, within reason."""
    told = response.headers.get("retry-after", "")
    return min(60.0, max(1.0, float(told))) if told.isdigit() else 1.0
