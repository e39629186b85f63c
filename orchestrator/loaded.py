"""A loaded model: its server, how to talk to it, and what ends it."""

from __future__ import annotations

import json
import ssl
import weakref
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from orchestrator.child import Child, Endpoints, remove_folder
from orchestrator.envelopes import from_envelope
from orchestrator.errors import BadRequest, EngineRoomError, UpstreamBroken
from orchestrator.gateway.sse import SseReader

_TIMEOUT = httpx.Timeout(None, connect=5)  # the gateway has limits of its own, and says so


@dataclass(frozen=True)
class GenerationResult:
    """One answer: `computation_time` in seconds at the engine, `throughput` in tokens a second.

    `str(result)` is its text. `finish_reason` is "stop" or "length".
    """

    generated_text: str
    token_count: int
    computation_time: float
    throughput: float
    finish_reason: str

    @property
    def text(self) -> str:
        """The same as `generated_text`."""
        return self.generated_text

    def __str__(self) -> str:
        return self.generated_text


class LoadedModel:
    """The server of one model. It ends by `end`, or when `owner` is collected, or at exit."""

    def __init__(
        self, owner: object, child: Child, where: Endpoints, key: str, folder: Path, limit_s: float
    ) -> None:
        self._child, self._where = child, where
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._client = httpx.Client(timeout=_TIMEOUT, trust_env=False, verify=_no_tls())
        self._finalizer = weakref.finalize(owner, _end, child, self._client, folder, limit_s)

    @property
    def name(self) -> str:
        """What the gateway calls the model."""
        return self._where.model

    def end(self) -> None:
        """Drain and end the server; returns when it is gone. Idempotent."""
        self._finalizer()

    def ask_admin(self, path: str) -> Any:
        """The JSON of one GET of the admin API."""
        headers = {"authorization": f"Bearer {self._where.token}"}
        try:
            answer = self._client.get(self._where.admin + path, headers=headers)
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: ended meanwhile
            raise self._child.lost("while it was asked") from error
        _check(answer)
        return answer.json()

    def generate(self, body: bytes) -> GenerationResult:
        """One POST of `/generate`."""
        url = self._where.gateway + "/generate"
        try:
            answer = self._client.post(url, content=body, headers=self._headers)
        except (httpx.HTTPError, RuntimeError) as error:
            raise self._child.lost("in the middle of a request") from error
        _check(answer)
        told = answer.json()
        return GenerationResult(**{name: told[name] for name in GenerationResult.__annotations__})

    async def pieces(self, body: bytes, keep: object) -> AsyncGenerator[str, None]:
        """One POST of `/generate_stream`: its texts. Closing the generator cancels the request.

        `keep` lives as long as the generator: the owner must not be collected, which would end the
        server. (A generator around this one would do that, and be closed beside it, not before it,
        where an event loop ends.)
        """
        url = self._where.gateway + "/generate_stream"
        reader = SseReader()
        try:
            async with (
                # One for each stream: a client belongs to the event loop that it was used in.
                httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, verify=_no_tls()) as client,
                client.stream("POST", url, content=body, headers=self._headers) as answer,
            ):
                if answer.is_error:
                    await answer.aread()
                    _check(answer)
                async for chunk in answer.aiter_raw():
                    for payload in reader.feed(chunk):
                        if payload == "[DONE]":
                            return
                        told = json.loads(payload)
                        if "error" in told:
                            raise from_envelope(told["error"])
                        if "token" in told:
                            yield told["token"]
        except httpx.HTTPError as error:
            raise self._child.lost("in the middle of a stream") from error
        raise UpstreamBroken("the stream ended before its answer was complete")


def _end(child: Child, client: httpx.Client, folder: Path, limit_s: float) -> None:
    """End a server and forget its state. Knows nothing of the engine: that may be collected."""
    owner = child.owned
    child.end(limit_s)
    client.close()
    if owner:
        remove_folder(folder)


def _no_tls() -> ssl.SSLContext:
    """A context without certificates: the gateway is plain HTTP, and reading them takes 20 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def request_body(
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    repetition_penalty: float,
    stop: str | Sequence[str] | None,
    seed: int | None,
    do_sample: bool,
) -> bytes:
    """The JSON body of one generation. Raises BadRequest for what JSON cannot say."""
    fields: dict[str, object] = {
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "do_sample": do_sample,
    }
    if stop is not None:
        fields["stop"] = stop if isinstance(stop, str) else list(stop)
    if seed is not None:
        fields["seed"] = seed
    try:
        return json.dumps(fields, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadRequest(f"an argument of generate cannot be sent: {error}") from None


def _check(answer: httpx.Response) -> None:
    """Raise the server's own error. `answer` has been read."""
    if not answer.is_error:
        return
    try:
        told = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        raise EngineRoomError(f"HTTP {answer.status_code} without a reason") from None
    error = from_envelope(told)
    retry_after = answer.headers.get("retry-after", "")
    error.retry_after = float(retry_after) if retry_after.isdigit() else error.retry_after
    raise error
