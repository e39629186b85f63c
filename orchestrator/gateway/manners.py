"""How each API dresses its streams and tells its errors. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import orjson

from orchestrator.errors import EngineRoomError
from orchestrator.gateway import anthropic
from orchestrator.gateway.ollama_answers import CONTENT_TYPE, failure, line
from orchestrator.gateway.sse import comment, event

_UNCACHED = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
_EVENTS = b"content-type: text/event-stream; charset=utf-8\r\n" + _UNCACHED


class Manners(NamedTuple):
    """`head`: header lines of a stream. `error`: a body, `broken`: the last event of a stream that
    had begun. `remark`: what keeps a silent stream alive, empty where the API has nothing for it.
    """

    head: bytes
    error: Callable[[EngineRoomError], bytes]
    broken: Callable[[EngineRoomError], bytes]
    remark: bytes


def _plain(error: EngineRoomError) -> bytes:
    return orjson.dumps(error.envelope())


def _plain_event(error: EngineRoomError) -> bytes:
    return event(error.envelope())


def _ollama(error: EngineRoomError) -> bytes:
    return line(failure(error))


def _anthropic(error: EngineRoomError) -> bytes:
    return orjson.dumps(anthropic.failure(error))


def _anthropic_event(error: EngineRoomError) -> bytes:
    return b"event: error\ndata: " + _anthropic(error) + b"\n\n"


def _response_event(error: EngineRoomError) -> bytes:
    told = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    return b"event: error\ndata: " + orjson.dumps(told) + b"\n\n"


_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_REMARK = comment("keep-alive")
OPENAI = Manners(_EVENTS, _plain, _plain_event, _REMARK)
RESPONSES = Manners(_EVENTS, _plain, _response_event, _REMARK)
ANTHROPIC = Manners(_EVENTS, _anthropic, _anthropic_event, _PING)
OLLAMA = Manners(
    b"content-type: " + CONTENT_TYPE.encode() + b"\r\n" + _UNCACHED, _ollama, _ollama, b""
)


def manners_of(path: str) -> Manners:
    """Those of a path, whoever serves it."""
    if path.startswith("/api/"):
        return OLLAMA
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return RESPONSES if path.startswith("/v1/responses") else OPENAI
