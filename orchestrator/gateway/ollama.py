"""Ollama's `/api/generate` and `/api/chat`: their bodies, and what they ask of an engine. Pure.

A request becomes one of OpenAI's and is then checked, routed and sent as any other. How a model is
loaded (`num_gpu`, `num_ctx`, ...) was decided by the plan: such options are taken and do nothing,
since tools send them unasked. Options that nobody knows are refused by name.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from orchestrator.errors import BadRequest
from orchestrator.gateway.keep_alive import KeepAlive

LATEST = ":latest"  # what Ollama adds to a name without a tag
_UNLIMITED = frozenset({-1, -2})  # num_predict: until the end, or until the context is full
# Of the options those that the plan settled, and those that change nothing with these engines.
_SETTLED = frozenset({
    "num_ctx", "num_batch", "num_gpu", "num_thread", "main_gpu", "low_vram", "f16_kv", "numa",
    "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only", "num_keep",
    "penalize_newline", "repeat_last_n",
})  # fmt: skip
_AS_THEY_ARE = (
    "temperature", "top_k", "top_p", "min_p", "seed", "stop", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "mirostat_tau", "mirostat_eta", "typical_p",
)  # fmt: skip


class _Request(BaseModel):
    """What both bodies have."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[StrictStr, Field(min_length=1)]
    stream: StrictBool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None
    think: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None

    @property
    def streams(self) -> bool:
        """Ollama streams unless told not to."""
        return self.stream is not False


class OllamaGenerateRequest(_Request):
    """Body of `/api/generate`. An empty prompt asks for the model to be loaded, or let go."""

    prompt: StrictStr | None = None
    system: StrictStr | None = None
    raw: StrictBool | None = None
    images: Annotated[list[StrictStr], Field(max_length=0)] | None = None
    suffix: Annotated[StrictStr, Field(max_length=0)] | None = None
    template: Annotated[StrictStr, Field(max_length=0)] | None = None
    context: Annotated[list[StrictInt], Field(max_length=0)] | None = None


class OllamaFunction(BaseModel):
    """A function call; its arguments are an object here, and text in OpenAI's API."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[StrictStr, Field(min_length=1)]
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: StrictInt | None = None


class OllamaToolCall(BaseModel):
    """One call of a message of the assistant."""

    model_config = ConfigDict(extra="forbid")

    id: StrictStr | None = None
    type: Literal["function"] | None = None
    function: OllamaFunction


class OllamaMessage(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: StrictStr | None = None
    images: Annotated[list[StrictStr], Field(max_length=0)] | None = None
    thinking: StrictStr | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: StrictStr | None = None
    tool_call_id: StrictStr | None = None


class OllamaChatRequest(_Request):
    """Body of `/api/chat`. No messages ask for the model to be loaded, or let go."""

    messages: Annotated[list[OllamaMessage], Field(max_length=1000)] = Field(default_factory=list)
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None


class OllamaShowRequest(BaseModel):
    """Body of `/api/show`; `name` is what older clients send."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: StrictStr | None = None
    name: StrictStr | None = None
    verbose: StrictBool | None = None


def only_loads(request: OllamaGenerateRequest | OllamaChatRequest) -> bool:
    """Whether nothing is to be generated."""
    if isinstance(request, OllamaChatRequest):
        return not request.messages
    return not request.prompt


def to_openai(request: OllamaGenerateRequest | OllamaChatRequest, chats: bool) -> dict[str, Any]:
    """The same question as a body of OpenAI's API, streamed, with its usage asked for.

    `chats`: whether the engine offers chat; a plain prompt goes through the chat template there, as
    it does in Ollama, unless the request is `raw`. A body with `messages` is for
    `/v1/chat/completions`, one with `prompt` for `/v1/completions`. Raises BadRequest.
    """
    body: dict[str, Any] = {"model": request.model, "stream": True, **_sampling(request)}
    if request.keep_alive is not None:
        body["keep_alive"] = request.keep_alive
    if isinstance(request, OllamaChatRequest):
        body["messages"] = _messages(request.messages)
        if request.tools:
            body["tools"] = request.tools
    elif request.raw or not chats:
        if request.raw and request.system:
            raise BadRequest("a raw prompt takes no system text", param="system")
        before = f"{request.system}\n\n" if request.system else ""
        body["prompt"] = before + (request.prompt or "")
    else:
        system = [{"role": "system", "content": request.system}] if request.system else []
        body["messages"] = [*system, {"role": "user", "content": request.prompt}]
    if request.format:
        body["response_format"] = _format(request.format)
    return body


def _format(wanted: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(wanted, str):
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}


def _sampling(request: _Request) -> dict[str, Any]:
    """The options as OpenAI's fields; their values are checked with the rest of that body."""
    options = {key: value for key, value in (request.options or {}).items() if value is not None}
    body = {key: options.pop(key) for key in _AS_THEY_ARE if key in options}
    predict = options.pop("num_predict", None)
    if predict is not None and not (isinstance(predict, int) and predict in _UNLIMITED):
        body["max_tokens"] = predict
    if "mirostat" in options:
        body["mirostat_mode"] = options.pop("mirostat")
    if not body.get("stop", True):
        del body["stop"]
    if unknown := sorted(set(options) - _SETTLED):
        raise BadRequest(f"unknown option {unknown[0][:64]!r}", param="options")
    return body


def _messages(messages: list[OllamaMessage]) -> list[dict[str, Any]]:
    """With an id for each call, which Ollama's messages may lack: answers come in their order."""
    told: list[dict[str, Any]] = []
    unanswered: list[tuple[str, str]] = []  # id and name of the calls that no tool answered yet
    count = 0
    for message in messages:
        value: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                count += 1
                name, made = call.id or f"call_{count}", call.function
                calls.append({
                    "id": name,
                    "type": "function",
                    "function": {"name": made.name, "arguments": json.dumps(made.arguments)},
                })  # fmt: skip
                unanswered.append((name, made.name))
            value["tool_calls"] = calls
        if message.role == "tool":
            value["tool_call_id"] = _answered(message, unanswered)
        told.append(value)
    return told


def _answered(message: OllamaMessage, unanswered: list[tuple[str, str]]) -> str:
    """The id of the call that a tool's message answers; it is crossed off."""
    for each in unanswered:
        fits = message.tool_name in (None, each[1])
        if each[0] == message.tool_call_id or (message.tool_call_id is None and fits):
            unanswered.remove(each)
            return each[0]
    if message.tool_call_id is not None:
        return message.tool_call_id
    raise BadRequest("a message of role tool answers no call", param="messages")
