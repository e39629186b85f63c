"""What a body may say: from bytes to a checked value, or a refusal. Standard library only.

A field that this module does not know is refused by its name, and so is a value that the server
would have to ignore: a client must never believe in an effect that is not there. `null` counts as
absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_STOPS = 16
DEFAULT_TOKENS = 16  # of a completion whose body has no max_tokens, as OpenAI's
_SAMPLING = ("temperature", "top_p", "min_p", "top_k", "seed", "repetition_penalty")
_COMMON = frozenset(
    {
        *("model", "max_tokens", "n", "stop", "stream", "stream_options", "user", "ignore_eos"),
        *("presence_penalty", "frequency_penalty", *_SAMPLING),
    }
)
COMPLETION_FIELDS = _COMMON | {"prompt"}
CHAT_FIELDS = _COMMON | {"messages", "max_completion_tokens"}
ROLES = ("system", "developer", "user", "assistant", "tool")


class Refused(Exception):
    """A request that gets an error answer: HTTP status, sentence, and the envelope's fields."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.retry_after = retry_after

    def envelope(self) -> dict[str, Any]:
        """The body of the answer, as OpenAI words it."""
        said = {"message": str(self), "type": self.kind, "code": self.code, "param": self.param}
        return {"error": said}


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen; `temperature` 0 is greedy, `top_k` 0 is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True)
class Asked:
    """One checked request.

    `max_tokens` is None where the body has none: then `default_tokens`, None for all the room that
    the context leaves. `seeded` tells whether the body names a seed. `prompt` is text or token ids,
    None for a chat, which has `messages`.
    """

    model: str
    prompt: str | tuple[int, ...] | None
    messages: tuple[dict[str, str], ...]
    max_tokens: int | None
    default_tokens: int | None
    sampling: Sampling
    seeded: bool
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool


def load(raw: bytes) -> dict[str, Any]:
    """The body's JSON object without its nulls."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused("the body is not valid JSON", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object", code="invalid_json")
    return {name: value for name, value in body.items() if value is not None}


def completion(raw: bytes) -> Asked:
    """A body of `/v1/completions`."""
    body = load(raw)
    _known(body, COMPLETION_FIELDS)
    limit = _integer(body, "max_tokens", 1, 10**9)
    return _asked(body, prompt=_prompt(body), max_tokens=limit, default_tokens=DEFAULT_TOKENS)


def chat(raw: bytes) -> Asked:
    """A body of `/v1/chat/completions`."""
    body = load(raw)
    _known(body, CHAT_FIELDS)
    if {"max_tokens", "max_completion_tokens"} <= set(body):
        raise Refused("max_tokens and max_completion_tokens: give one", param="max_tokens")
    limit = _integer(body, "max_completion_tokens", 1, 10**9)
    limit = _integer(body, "max_tokens", 1, 10**9) if limit is None else limit
    return _asked(body, messages=_messages(body), max_tokens=limit)


def tokenize(raw: bytes) -> tuple[str, str]:
    """Model and prompt of a body of `/tokenize`; here the prompt may be empty."""
    body = load(raw)
    _known(body, frozenset({"model", "prompt"}))
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise Refused("prompt must be a string", param="prompt")
    return _text(body, "model"), _encodable(prompt, "prompt")


def _asked(
    body: Mapping[str, Any],
    *,
    max_tokens: int | None,
    prompt: str | tuple[int, ...] | None = None,
    messages: tuple[dict[str, str], ...] = (),
    default_tokens: int | None = None,
) -> Asked:
    if body.get("n", 1) != 1 or isinstance(body.get("n"), bool):
        raise Refused("n must be 1", param="n")
    if not isinstance(body.get("user", ""), str):
        raise Refused("user must be a string", param="user")
    stream = _flag(body, "stream")
    return Asked(
        model=_text(body, "model"),
        prompt=prompt,
        messages=messages,
        max_tokens=max_tokens,
        default_tokens=default_tokens,
        sampling=_sampling(body),
        seeded="seed" in body,
        stop=_stop(body),
        stream=stream,
        include_usage=_usage(body, stream),
        ignore_eos=_flag(body, "ignore_eos"),
    )


def _sampling(body: Mapping[str, Any]) -> Sampling:
    top_k = _integer(body, "top_k", -1, 2**31 - 1) or 0
    return Sampling(
        temperature=_number(body, "temperature", 0, 100, 1.0),
        top_p=_number(body, "top_p", 0, 1, 1.0, above=True),
        min_p=_number(body, "min_p", 0, 1, 0.0),
        top_k=max(top_k, 0),
        seed=(_integer(body, "seed", -(2**63), 2**64 - 1) or 0) % 2**64,
        repetition_penalty=_number(body, "repetition_penalty", 0, 100, 1.0, above=True),
        presence_penalty=_number(body, "presence_penalty", -2, 2, 0.0),
        frequency_penalty=_number(body, "frequency_penalty", -2, 2, 0.0),
    )


def _known(body: Mapping[str, Any], fields: frozenset[str]) -> None:
    unknown = sorted(set(body) - fields)
    if unknown:
        raise Refused(
            f"{', '.join(unknown)}: not supported by this engine",
            code="unknown_field",
            param=unknown[0],
        )


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"{name} must be a string that is not empty", param=name)
    return value


def _encodable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(f"{name} holds half a surrogate pair: not Unicode text", param=name) from None
    return text


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise Refused(f"{name} must be true or false", param=name)
    return value


def _integer(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(f"{name} must be a whole number from {least} to {most}", param=name)
    return value


def _number(
    body: Mapping[str, Any],
    name: str,
    least: float,
    most: float,
    default: float,
    *,
    above: bool = False,
) -> float:
    value = body.get(name, default)
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not right or not least <= value <= most or (above and value == least):
        bound = f"above {least}, at most {most}" if above else f"from {least} to {most}"
        raise Refused(f"{name} must be a number {bound}", param=name)
    return float(value)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_STOPS:
        raise Refused(f"stop must be a string or at most {MAX_STOPS} strings", param="stop")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise Refused("stop must hold strings that are not empty", param="stop")
    return tuple(_encodable(text, "stop") for text in texts)


def _usage(body: Mapping[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise Refused("stream_options is for stream: true only", param="stream_options")
    if not isinstance(options, dict) or not set(options) <= {"include_usage"}:
        raise Refused("stream_options knows include_usage only", param="stream_options")
    return _flag(options, "include_usage")


def _prompt(body: Mapping[str, Any]) -> str | tuple[int, ...]:
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        if not value:
            raise Refused("prompt is empty", param="prompt", code="empty_prompt")
        return _encodable(value, "prompt")
    if value == []:
        raise Refused("prompt is empty", param="prompt", code="empty_prompt")
    if isinstance(value, list) and all(type(each) is int and each >= 0 for each in value):
        return tuple(value)
    raise Refused("prompt must be one string, or one list of token ids", param="prompt")


def _messages(body: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise Refused("messages must be a list that is not empty", param="messages")
    return tuple(_message(each, f"messages[{at}]") for at, each in enumerate(value))


def _message(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not set(value) <= {"role", "content", "name"}:
        raise Refused(f"{where} must hold role and content", param="messages")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise Refused(f"{where}.role must be one of {', '.join(ROLES)}", param="messages")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise Refused(f"{where}.content must be text", param="messages")
    return {"role": role, "content": _encodable(content, "messages")}


def _part(value: object, where: str) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        text = value.get("text")
        if isinstance(text, str) and set(value) == {"type", "text"}:
            return text
    raise Refused(f"{where}.content: only parts of type text are supported", param="messages")
