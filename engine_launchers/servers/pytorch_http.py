"""The HTTP face: routes, the key, error envelopes, server-sent events, and gone clients."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pytorch_answers import Piece, Shape, decoder, pieces, usage
from pytorch_bodies import Asked, Refused, chat, completion, tokenize
from pytorch_engine import Ended, Engine, Stream
from starlette.exceptions import HTTPException

MAX_BODY = 16 * 2**20
_GONE = Response(status_code=499)


class Face:
    """The handlers over one engine."""

    def __init__(self, engine: Engine, key: str | None, started: int) -> None:
        self._engine = engine
        self._key = key.encode() if key else None
        self._started = started
        self._tokenizer = engine.loaded.tokenizer
        self._decode = decoder(self._tokenizer)
        # One thread: a tokenizer is not made for several, and a long prompt must not stop the rest.
        self._side = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def app(self) -> FastAPI:
        """The application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        app.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models", self.models, methods=["GET"], response_model=None)
        for path, handler in (
            ("/v1/completions", self.completions),
            ("/v1/chat/completions", self.chats),
            ("/tokenize", self.tokenize),
        ):
            app.add_api_route(path, handler, methods=["POST"], response_model=None)
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(HTTPException, _no_route)
        return app

    async def health(self) -> Response:
        """200 while the loop lives."""
        alive = self._engine.alive()
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    async def metrics(self) -> Response:
        """Prometheus text."""
        return PlainTextResponse(self._engine.metrics.text())

    async def models(self, request: Request) -> Response:
        """All names, the adapters' with the base model as `parent`."""
        self._check_key(request)
        base = self._engine.options.served
        rows = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "engineroom",
                "max_model_len": self._engine.loaded.max_model_len,
                "parent": None if name in base else base[0],
            }
            for name in (*base, *self._engine.loaded.adapters)
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def tokenize(self, request: Request) -> Response:
        """How many tokens `/v1/completions` would count."""
        self._check_key(request)
        model, prompt = tokenize(await _body(request))
        self._engine.adapter_of(model)
        return JSONResponse({"count": len(await self._ids(prompt))})

    async def completions(self, request: Request) -> Response:
        """`/v1/completions`."""
        self._check_key(request)
        asked = completion(await _body(request))
        self._engine.adapter_of(asked.model)
        text = asked.prompt
        ids = await self._ids(text) if isinstance(text, str) else list(text or ())
        return await self._answer(request, asked, ids, Shape(asked.model, chat=False))

    async def chats(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        self._check_key(request)
        asked = chat(await _body(request))
        self._engine.adapter_of(asked.model)
        ids = await self._aside(lambda: self._templated(asked))
        return await self._answer(request, asked, ids, Shape(asked.model, chat=True))

    def _templated(self, asked: Asked) -> list[int]:
        if not self._tokenizer.chat_template:
            raise Refused(
                "this model has no chat template; use /v1/completions", code="no_chat_template"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                list(asked.messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Refused(f"the chat template refuses this: {said}", param="messages") from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    async def _ids(self, text: str) -> list[int]:
        def ids() -> list[int]:
            found: list[int] = self._tokenizer(text)["input_ids"]
            return found

        return await self._aside(ids)

    async def _aside(self, work: Callable[[], list[int]]) -> list[int]:
        return await asyncio.get_running_loop().run_in_executor(self._side, work)

    async def _answer(
        self, request: Request, asked: Asked, ids: list[int], shape: Shape
    ) -> Response:
        stream = self._engine.submit(asked, ids)
        watcher = asyncio.create_task(_watch(request, stream))
        answer = self._pieces(stream, watcher)
        if asked.stream:
            return await self._streamed(answer, stream, shape)
        text, last = "", Piece("", 0, None)
        async with aclosing(answer):
            async for piece in answer:
                text, last = text + piece.text, piece
        if last.finish is None:
            return _GONE
        return JSONResponse(shape.whole(text, last.finish, usage(len(ids), last.tokens)))

    async def _pieces(self, stream: Stream, watcher: asyncio.Task[None]) -> AsyncGenerator[Piece]:
        """The answer's pieces; whatever happens, the place is free afterwards."""
        reason = "cancelled"
        try:
            async with aclosing(pieces(self._engine, stream, self._decode)) as found:
                async for piece in found:
                    reason = piece.finish or reason
                    yield piece
        except Refused:
            reason = "failed"
            raise
        finally:
            watcher.cancel()
            self._engine.close(stream, reason)

    async def _streamed(
        self, answer: AsyncGenerator[Piece], stream: Stream, shape: Shape
    ) -> Response:
        """Waits for the first piece, so that what fails before it gets a status of its own."""
        try:
            first = await anext(answer)
        except StopAsyncIteration:
            return _GONE
        body = self._events(first, answer, stream, shape)
        return StreamingResponse(body, media_type="text/event-stream")

    async def _events(
        self, first: Piece, answer: AsyncGenerator[Piece], stream: Stream, shape: Shape
    ) -> AsyncGenerator[bytes]:
        opening = shape.first()
        last = first
        async with aclosing(answer):
            if opening:
                yield _event(opening)
            yield _event(shape.part(first))
            try:
                async for piece in answer:
                    last = piece
                    yield _event(shape.part(piece))
            except Refused as error:
                yield _event(error.envelope())
                return
        if last.finish is None:
            return
        if stream.asked.include_usage:
            yield _event(shape.usage(usage(len(stream.prompt), last.tokens)))
        yield b"data: [DONE]\n\n"

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        said = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(said, b"Bearer " + self._key):
            raise Refused(
                "the API key is missing or wrong",
                status=401, kind="authentication_error", code="invalid_api_key",
            )  # fmt: skip


async def _watch(request: Request, stream: Stream) -> None:
    """Ends the request when its client is gone; the body has been read, so nothing else comes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    stream.events.put_nowait(Ended())


async def _body(request: Request) -> bytes:
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > MAX_BODY:
            raise Refused(f"the body is larger than {MAX_BODY} bytes", status=413)
    return bytes(found)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    wait = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse(error.envelope(), error.status, wait)


async def _no_route(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    refusal = Refused(str(error.detail), status=error.status_code)
    return JSONResponse(refusal.envelope(), error.status_code)
