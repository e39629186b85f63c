"""`/generate` and `/generate_stream`: their bodies, and the translation both ways. Pure."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from engine_launchers.base import Quirks
from orchestrator.gateway.keep_alive import KeepAlive

Number = StrictFloat | StrictInt
MAX_SEED = 2**32 - 2  # llama.cpp takes 2**32 - 1 for "choose one"
Priority = Annotated[StrictInt, Field(ge=-100, le=100)]
Timeout = Annotated[Number, Field(gt=0, le=86_400)]
StopText = Annotated[StrictStr, Field(min_length=1, max_length=64)]


class GenerateRequest(BaseModel):
    """Body of `/generate`. `do_sample` false is greedy: temperature and top_p do not count then."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    prompt: Annotated[StrictStr, Field(min_length=1)]
    max_new_tokens: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 256
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[Number, Field(gt=0, le=1)] = 0.95
    do_sample: StrictBool = True
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, le=MAX_SEED)] | None = None
    model: StrictStr | None = None
    stream: StrictBool = False
    keep_alive: KeepAlive | None = None
    priority: Priority | None = None
    timeout: Timeout | None = None


def to_completion(request: GenerateRequest, quirks: Quirks) -> dict[str, Any]:
    """The engine's completion body without its model; always a stream, so leaving frees it."""
    body: dict[str, Any] = {
        "prompt": request.prompt,
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature if request.do_sample else 0,
        "top_p": request.top_p if request.do_sample else 1,
        "stream": True,
    }
    if request.repetition_penalty is not None:
        body[quirks.repetition_field] = request.repetition_penalty
    if request.stop is not None:
        body["stop"] = request.stop
    if request.seed is not None:
        body["seed"] = request.seed
    return body


def result(
    text: str, tokens: int, seconds: float, finish_reason: str, **more: object
) -> dict[str, Any]:
    """The answer of `/generate`, and the last event of a stream. `throughput` is tokens/s."""
    return {
        "generated_text": text,
        "token_count": tokens,
        "computation_time": round(seconds, 6),
        "throughput": round(tokens / seconds, 3) if seconds > 0 else 0.0,
        **more,
        "finish_reason": finish_reason,
    }
