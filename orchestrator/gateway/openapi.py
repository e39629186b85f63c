"""The gateway's API as an OpenAPI 3.1 document, from the models that check requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from orchestrator.envelopes import tree
from orchestrator.errors import RequestError
from orchestrator.gateway import anthropic, ollama, openai, responses, texts
from orchestrator.gateway.generate import GenerateRequest

_SSE = "text/event-stream"
_JSON = "application/json"
_LINES = "application/x-ndjson"

# Path, body, media types of a good answer, and what it is for.
_POSTS: tuple[tuple[str, type[BaseModel], tuple[str, ...], str], ...] = (
    ("/generate", GenerateRequest, (_JSON, _SSE), "Generate text from a prompt"),
    ("/generate_stream", GenerateRequest, (_SSE,), "The same, token by token"),
    ("/v1/completions", openai.CompletionRequest, (_JSON, _SSE), "OpenAI completions"),
    ("/v1/chat/completions", openai.ChatRequest, (_JSON, _SSE), "OpenAI chat completions"),
    ("/api/generate", ollama.OllamaGenerateRequest, (_LINES, _JSON), "Ollama generate"),
    ("/v1/messages", anthropic.MessagesRequest, (_JSON, _SSE), "Anthropic messages"),
    (
        "/v1/messages/count_tokens",
        anthropic.CountTokensRequest,
        (_JSON,),
        "Anthropic: tokens of a prompt",
    ),
    ("/v1/responses", responses.ResponsesRequest, (_JSON, _SSE), "OpenAI responses"),
    (texts.TOKENIZE, texts.TokenizeRequest, (_JSON,), "The tokens of a text"),
    (texts.DETOKENIZE, texts.DetokenizeRequest, (_JSON,), "The text of tokens"),
    (texts.EMBEDDINGS, texts.EmbeddingsRequest, (_JSON,), "OpenAI embeddings"),
    (texts.RERANK, texts.RerankRequest, (_JSON,), "How well documents answer a query"),
    ("/api/chat", ollama.OllamaChatRequest, (_LINES, _JSON), "Ollama chat"),
    ("/api/show", ollama.OllamaShowRequest, (_JSON,), "Ollama: about one model"),
)
_GETS: tuple[tuple[str, str, str, bool], ...] = (
    ("/models", _JSON, "Every model with its state and load", False),
    ("/v1/models", _JSON, "OpenAI: the names that requests may give", False),
    ("/metrics", "text/plain", "Prometheus metrics", False),
    ("/api/tags", _JSON, "Ollama: the models", False),
    ("/api/ps", _JSON, "Ollama: the models that are loaded", False),
    ("/api/version", _JSON, "Ollama: the version that is spoken", True),
    ("/health", _JSON, "What can be served now", True),
    ("/health/live", _JSON, "This process answers", True),
)


def document(version: str) -> dict[str, Any]:
    """The whole document; `version` is the program's."""
    bodies: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (model, "validation") for _, model, _, _ in _POSTS
    ]
    refs, defined = models_json_schema(bodies, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for path, model, kinds, summary in _POSTS:
        paths[path] = {"post": _post(path, refs[(model, "validation")], kinds, summary)}
    for path, kind, summary, public in _GETS:
        paths[path] = {"get": _get(path, kind, summary, public)}
    paths["/v1/models/{model}"] = {"get": _one_model()}
    paths["/health/ready"] = {"get": _get("/health/ready", _JSON, "A model can answer", True)}
    paths["/health/ready"]["get"]["responses"]["503"] = {"description": "none can"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Engine Room gateway", "version": version},
        "paths": paths,
        "components": {
            "schemas": {
                **defined["$defs"],
                "Error": _ERROR,
                "OllamaError": _OLLAMA_ERROR,
                "AnthropicError": _ANTHROPIC_ERROR,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "retryable"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "retryable": {"type": "boolean"},
            },
        }
    },
}


_ANTHROPIC_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
_OLLAMA_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}


def _post(path: str, schema: Any, kinds: Iterable[str], summary: str) -> dict[str, Any]:
    return {
        "operationId": _id(path),
        "summary": summary,
        "security": [{}, {"key": []}],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": schema}},
        },
        "responses": {
            "200": {"description": "the answer", "content": {each: {} for each in kinds}},
            **_errors(path),
        },
    }


def _get(path: str, kind: str, summary: str, public: bool) -> dict[str, Any]:
    return {
        "operationId": _id(path),
        "summary": summary,
        "security": [] if public else [{}, {"key": []}],
        "responses": {"200": {"description": "the answer", "content": {kind: {}}}, **_errors(path)},
    }


def _one_model() -> dict[str, Any]:
    told = _get("/v1/models/model", _JSON, "OpenAI: one name", False)
    where = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {**told, "parameters": [where]}


def _id(path: str) -> str:
    return path.strip("/").replace("/", "_") or "root"


def _errors(path: str) -> dict[str, Any]:
    """Every status that an error of a request may have, with its codes."""
    codes: dict[int, set[str]] = {}
    for each in tree(RequestError):
        codes.setdefault(each.http_status, set()).add(each.code)
    name = "OllamaError" if path.startswith("/api/") else "Error"
    if path.startswith("/v1/messages"):
        name = "AnthropicError"
    content = {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {
        str(status): {"description": ", ".join(sorted(names)), "content": content}
        for status, names in sorted(codes.items())
    }
