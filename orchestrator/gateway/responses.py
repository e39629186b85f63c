"""OpenAI's `/v1/responses`, for engines that speak it: what may pass. Pure.

Nothing is translated, and nothing is stored: a client sends the whole conversation each time.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from orchestrator.gateway.generate import Number
from orchestrator.gateway.keep_alive import KeepAlive
from orchestrator.gateway.openai import Limit

RESPONSES = "/v1/responses"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ResponsePart(_Strict):
    """A part of a message: text."""

    type: Literal["input_text", "output_text"]
    text: StrictStr
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class ResponseMessage(_Strict):
    """A message, as given or as it was answered."""

    type: Literal["message"] | None = None
    id: StrictStr | None = None
    role: Literal["system", "developer", "user", "assistant"]
    status: StrictStr | None = None
    content: StrictStr | list[ResponsePart]


class FunctionCallItem(_Strict):
    """A call that the model made."""

    type: Literal["function_call"]
    id: StrictStr | None = None
    call_id: StrictStr
    name: StrictStr
    arguments: StrictStr
    status: StrictStr | None = None


class FunctionCallOutput(_Strict):
    """What the function answered."""

    type: Literal["function_call_output"]
    id: StrictStr | None = None
    call_id: StrictStr
    output: StrictStr
    status: StrictStr | None = None


class FunctionTool(_Strict):
    """A function that the client runs."""

    type: Literal["function"]
    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class FunctionChoice(_Strict):
    """That function and no other."""

    type: Literal["function"]
    name: StrictStr


class ResponsesRequest(_Strict):
    """Body of `/v1/responses`."""

    model: StrictStr | None = None
    input: (
        Annotated[StrictStr, Field(min_length=1)]
        | Annotated[
            list[ResponseMessage | FunctionCallItem | FunctionCallOutput],
            Field(min_length=1, max_length=1000),
        ]
    )
    instructions: StrictStr | None = None
    max_output_tokens: Limit | None = None
    stream: StrictBool | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    user: StrictStr | None = None
    metadata: Annotated[dict[str, StrictStr], Field(max_length=16)] | None = None
    store: StrictBool | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=0)] | None = None
    keep_alive: KeepAlive | None = None


def upstream_body(request: ResponsesRequest) -> dict[str, Any]:
    """The body for the engine, without its model; nothing is stored there either."""
    passed = {
        "input", "instructions", "max_output_tokens", "stream", "temperature", "top_p", "tools",
        "tool_choice", "parallel_tool_calls",
    }  # fmt: skip
    return {
        **request.model_dump(exclude_unset=True, exclude_none=True, include=passed),
        "store": False,
    }
