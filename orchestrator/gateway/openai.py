"""`/v1/completions` and `/v1/chat/completions`: what may pass. Pure.

A body is checked field by field and re-encoded; what this module does not know is refused by name
unless the engine's launcher lists it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from engine_launchers.base import Quirks
from orchestrator.errors import BadRequest, UnsupportedParameter
from orchestrator.gateway.generate import MAX_SEED, Number, Priority, StopText, Timeout
from orchestrator.gateway.keep_alive import KeepAlive

Limit = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
LogitBias = Annotated[Number, Field(ge=-100, le=100)]
_SCHEMA_LIMIT = 64 * 1024


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


def _without_nulls(value: Any) -> Any:
    """A null field says the same as an absent one; clients send back what they were given."""
    if isinstance(value, dict):
        return {key: inner for key, inner in value.items() if inner is not None}
    return value


# Values of fields that ask for nothing we would not do anyway: taken, and not passed on.
_NEUTRAL = frozenset(
    {"stream_options", "store", "service_tier", "parallel_tool_calls", "logprobs", "top_logprobs"}
) | {"echo"}


# Fields for us, not for the engine; vLLM has a `priority` of its own, which counts downwards.
_OURS = frozenset({"model", "keep_alive", "priority", "timeout"})


class _Common(BaseModel):
    """Fields of both bodies. Others are checked against the engine's list."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: StrictStr | None = None
    max_tokens: Limit | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Literal[1] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[StrictInt, Field(ge=0, le=MAX_SEED)] | None = None
    user: StrictStr | None = None
    top_k: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    ignore_eos: StrictBool | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[str, LogitBias], Field(max_length=1000)] | None = None
    mirostat_mode: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[Number, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[Number, Field(ge=0, le=100)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    parallel_tool_calls: StrictBool | None = None
    logprobs: Literal[False, 0] | None = None
    top_logprobs: Literal[0] | None = None
    keep_alive: KeepAlive | None = None
    priority: Priority | None = None
    timeout: Timeout | None = None

    _nulls = model_validator(mode="before")(_without_nulls)

    @property
    def wants_usage(self) -> bool:
        """Whether the stream shall end with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(_Common):
    """Body of `/v1/completions`; a list of one prompt counts as that prompt."""

    prompt: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=1)]
    echo: Literal[False] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        if isinstance(value, list) and (len(value) != 1 or not isinstance(value[0], str)):
            raise ValueError("give one prompt, as text; several, or token ids, are not supported")
        return value


class TextPart(BaseModel):
    """A text part of a message; other kinds are refused."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: StrictStr


class ChatMessage(BaseModel):
    """One message. Parts are joined; `developer` is what newer clients call `system`."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: StrictStr | list[TextPart] | None = None
    name: StrictStr | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: StrictStr | None = None
    function_call: dict[str, Any] | None = None

    _nulls = model_validator(mode="before")(_without_nulls)

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        parts = value if isinstance(value, list) else []
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in parts):
            raise ValueError("only text parts are supported in content")
        return value

    def plain(self) -> dict[str, Any]:
        """The message with its content as one text. Raises BadRequest where it has none."""
        content = self.content
        if content is None and not (self.tool_calls or self.function_call):
            raise BadRequest(f"a message of role {self.role} needs content", param="messages")
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        rest = self.model_dump(exclude_none=True, exclude={"role", "content"})
        return {**rest, "role": role, "content": content or ""}


class JsonSchema(BaseModel):
    """The schema of `response_format`; engines turn it into a grammar, so its size is bounded."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "answer"
    description: StrictStr | None = None
    strict: StrictBool | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = Field(default_factory=dict)

    @field_validator("schema_")
    @classmethod
    def _small(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(repr(value)) > _SCHEMA_LIMIT:
            raise ValueError(f"a schema of more than {_SCHEMA_LIMIT} characters is not taken")
        return value


class ResponseFormat(BaseModel):
    """`response_format`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with that")
        return self


class Function(BaseModel):
    """A function that the client runs."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class Tool(BaseModel):
    """An entry of `tools`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """A function by its name."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr


class NamedTool(BaseModel):
    """That tool and no other."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(_Common):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Limit | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    functions: Annotated[list[Function], Field(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    response_format: ResponseFormat | None = None


def upstream_body(
    request: CompletionRequest | ChatRequest, allowed: frozenset[str]
) -> dict[str, Any]:
    """The body for the engine, without its model; always a stream.

    Raises UnsupportedParameter naming a field.
    """
    body = request.model_dump(
        exclude_unset=True, exclude_none=True, by_alias=True, exclude=set(_OURS)
    )
    if isinstance(request, ChatRequest):
        body["messages"] = [message.plain() for message in request.messages]
        limit = body.pop("max_completion_tokens", None)
        if limit is not None:
            if request.max_tokens is not None:
                raise BadRequest(
                    "give max_tokens or max_completion_tokens, not both", param="max_tokens"
                )
            body["max_tokens"] = limit
    else:
        body["prompt"] = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
        if not body["prompt"]:
            raise BadRequest("prompt must not be empty", param="prompt")
    dropped = _NEUTRAL - ({"parallel_tool_calls"} & allowed)
    body = {field: value for field, value in body.items() if field not in dropped}
    for field in body:
        if field not in allowed:
            raise UnsupportedParameter(f"this model's engine does not take {field!r}", param=field)
    return {**body, "stream": True}


USAGE_ASKED: dict[str, Any] = {"include_usage": True}


def asking_usage(body: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    """The body, and with it the question for a usage chunk where the engine wants to be asked."""
    if not quirks.usage_on_request:
        return body
    return {**body, "stream_options": USAGE_ASKED}
