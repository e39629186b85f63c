"""What is asked of a text without an answer being written: tokens, vectors, ranks. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from engine_launchers.traits import TokenizerTraits
from orchestrator.errors import BadRequest, UpstreamInvalid
from orchestrator.gateway.guard import Guard
from orchestrator.gateway.keep_alive import KeepAlive
from orchestrator.gateway.shapes import End

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"

_MOST_TOKENS = 1 << 20
_MOST_TEXTS = 2048
Token = Annotated[StrictInt, Field(ge=0, le=(1 << 31) - 1)]
_Tokens = Annotated[list[Token], Field(min_length=1, max_length=_MOST_TOKENS)]
_Text = Annotated[StrictStr, Field(min_length=1)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: StrictStr | None = None
    keep_alive: KeepAlive | None = None


class TokenizeRequest(_Asked):
    """Body of `/tokenize`, as vLLM's: which tokens a text is for the model."""

    prompt: StrictStr
    add_special_tokens: StrictBool = True


class DetokenizeRequest(_Asked):
    """Body of `/detokenize`: the text that tokens stand for."""

    tokens: Annotated[list[Token], Field(max_length=_MOST_TOKENS)]


class EmbeddingsRequest(_Asked):
    """Body of `/v1/embeddings`."""

    input: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, max_length=_MOST_TEXTS)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, max_length=_MOST_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1, le=1 << 16)] | None = None
    user: StrictStr | None = None


class RerankRequest(_Asked):
    """Body of `/v1/rerank`: how well documents answer a query."""

    query: _Text
    documents: Annotated[list[_Text], Field(min_length=1, max_length=_MOST_TEXTS)]
    top_n: Annotated[StrictInt, Field(ge=1, le=_MOST_TEXTS)] | None = None
    return_documents: StrictBool | None = None


def upstream_body(request: _Asked) -> dict[str, Any]:
    """The body for the engine, without its model."""
    ours = {"model", "keep_alive", "user"}
    return request.model_dump(exclude_unset=True, exclude_none=True, exclude=ours)


def tokenize_body(request: TokenizeRequest, traits: TokenizerTraits) -> dict[str, Any]:
    """The same question as the engine is asked it. Raises BadRequest for what it cannot do."""
    if traits.special is not None:
        return {traits.asks: request.prompt, traits.special: request.add_special_tokens}
    if not request.add_special_tokens:
        told = "this model's engine always adds what begins a prompt"
        raise BadRequest(told, param="add_special_tokens")
    return {traits.asks: request.prompt}


class Made:
    """An answer made of the engine's object by `make`, which raises what an odd one raises."""

    __slots__ = ("_make", "_value")
    stream = False
    keeps_text = False
    passes = False

    def __init__(self, make: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._make = make
        self._value: dict[str, Any] = {}

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        self._value = self._make(value)
        return b""

    def closing(self, guard: Guard, end: End) -> bytes:
        return orjson.dumps(self._value)


def tokens_of(value: dict[str, Any], context: int) -> dict[str, Any]:
    """The answer of `/tokenize`. Raises UpstreamInvalid."""
    tokens = value.get("tokens")
    if not isinstance(tokens, list) or not all(type(each) is int for each in tokens):
        raise UpstreamInvalid("the engine's tokenizer gave no tokens")
    return {"count": len(tokens), "max_model_len": context, "tokens": tokens}


def text_of(value: dict[str, Any], key: str) -> dict[str, Any]:
    """The answer of `/detokenize`. Raises UpstreamInvalid."""
    text = value.get(key)
    if not isinstance(text, str):
        raise UpstreamInvalid("the engine's tokenizer gave no text")
    return {"prompt": text}
