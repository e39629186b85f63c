"""Anthropic's `/v1/messages`, for engines that speak it: what may pass, and its errors. Pure.

Nothing is translated. Images, documents and server tools are refused, as is what is not known here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from orchestrator.errors import EngineRoomError
from orchestrator.gateway.generate import Number, StopText
from orchestrator.gateway.keep_alive import KeepAlive
from orchestrator.gateway.openai import Limit

MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"

# What Anthropic calls our statuses; others are "api_error".
_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class CacheControl(_Strict):
    """A hint for a cache that engines keep by themselves."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(_Strict):
    """Text."""

    type: Literal["text"]
    text: StrictStr
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(_Strict):
    """What the model thought before, sent back by the client."""

    type: Literal["thinking"]
    thinking: StrictStr
    signature: StrictStr = ""


class ToolUseBlock(_Strict):
    """A call of a tool that the model made."""

    type: Literal["tool_use"]
    id: StrictStr
    name: Annotated[StrictStr, Field(min_length=1, max_length=128)]
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(_Strict):
    """What the tool answered."""

    type: Literal["tool_result"]
    tool_use_id: StrictStr
    content: StrictStr | list[TextBlock] | None = None
    is_error: StrictBool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[
    TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]


class AnthropicMessage(_Strict):
    """One turn."""

    role: Literal["user", "assistant"]
    content: StrictStr | Annotated[list[Block], Field(max_length=1000)]


class AnthropicTool(_Strict):
    """A tool that the client runs."""

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: StrictStr | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class ToolChoice(_Strict):
    """Which tool, if any."""

    type: Literal["auto", "any", "tool", "none"]
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Metadata(_Strict):
    """Taken, and not passed on."""

    user_id: StrictStr | None = None


class NoThinking(_Strict):
    """Thinking is the model's chat template's choice."""

    type: Literal["disabled"]


class CountTokensRequest(_Strict):
    """Body of `/v1/messages/count_tokens`."""

    model: StrictStr | None = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=1000)]
    system: StrictStr | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: NoThinking | None = None


class MessagesRequest(CountTokensRequest):
    """Body of `/v1/messages`."""

    max_tokens: Limit
    stream: StrictBool | None = None
    stop_sequences: Annotated[list[StopText], Field(max_length=16)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    keep_alive: KeepAlive | None = None


def upstream_body(request: CountTokensRequest) -> dict[str, Any]:
    """The body for the engine, without its model."""
    ours = {"model", "keep_alive", "metadata", "service_tier", "thinking"}
    return request.model_dump(exclude_unset=True, exclude_none=True, exclude=ours)


def failure(error: EngineRoomError) -> dict[str, Any]:
    """An error as Anthropic's clients know them."""
    kind = _KINDS.get(error.http_status, "api_error")
    told = {"type": kind, "message": error.message, "code": error.code}
    return {"type": "error", "error": told}
