"""A running server by its address: what it serves becomes the plan, nothing is ours to size."""

from __future__ import annotations

import re
from typing import Any

import httpx

from engine_launchers.base import EngineName, EnginePlan, Launcher, Listen, Tuning
from engine_launchers.model import ModelFormat, ModelSpec
from orchestrator.errors import ConfigError, EngineMissing
from orchestrator.models.names import model_name

_URL = re.compile(r"http://(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})/?")
_ASK_S = 10.0
_CONTEXT = 4096  # where a server does not tell its own
_STREAMS = 16  # that a server which batches is given at once


def address(url: str) -> Listen:
    """Host and port of `http://host:port`. Raises ConfigError."""
    match = _URL.fullmatch(url)
    port = int(match["port"]) if match else 0
    if match is None or not 0 < port < 65536:
        raise ConfigError(f"engine_url {url!r}: give http://host:port, without a path")
    return Listen(host=match["host"].strip("[]"), port=port)


def plan_of(
    url: str, engine: EngineName, launcher: Launcher, wanted: str | None, users: int | None
) -> EnginePlan:
    """A plan that describes the server at `url`: asks it for its models.

    `wanted` is the model to take where the server has several. Raises EngineMissing where it does
    not answer as an OpenAI server, ConfigError where it does not serve `wanted`.
    """
    listen = address(url)
    rows = _models(listen.base_url)
    names = [str(row["id"]) for row in rows]
    if wanted is not None and wanted not in names:
        raise ConfigError(f"{url} serves {', '.join(names)}, not {wanted}: name one of them")
    if wanted is None and len(rows) > 1:
        raise ConfigError(f"{url} serves {', '.join(names)}: name one of them as the model")
    row = rows[names.index(wanted) if wanted else 0]
    context, name = _context(row), str(row["id"])
    kind: ModelFormat = "gguf" if "gguf" in launcher.formats else "safetensors"
    model = ModelSpec(
        id=model_name(name.rsplit("/", 1)[-1]), source=url, format=kind, architecture="unknown",
        params=0, layers=0, heads=0, kv_heads=0, head_dim=0, context_max=context,
        quantization="unknown", weight_bytes=0,
    )  # fmt: skip
    at_once = users or (_STREAMS if launcher.speed.batching else 1)
    return EnginePlan(
        id=f"{engine.replace('_', '-')}-external",
        engine=engine,
        engine_version="unknown",
        tier="EXTERNAL",
        model=model,
        tuning=Tuning(max_model_len=context, max_concurrency=at_once),
        runtime="external",
        address=listen,
        upstream_name=name,
        reasons=(f"{url} was given: it is used as it is",),
    )


def _models(base: str) -> list[dict[str, Any]]:
    try:
        answer = httpx.get(f"{base}/v1/models", timeout=_ASK_S, trust_env=False)
        rows = answer.raise_for_status().json()["data"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineMissing(
            f"engine_url {base}: GET /v1/models was not answered as an OpenAI server does "
            f"({type(error).__name__}); is it running there?"
        ) from error
    found = [row for row in rows if isinstance(row, dict) and row.get("id")]
    if not found:
        raise EngineMissing(f"engine_url {base}: it serves no model")
    return found


def _context(row: dict[str, Any]) -> int:
    """Tokens per sequence: vLLM tells `max_model_len`, llama-server `meta.n_ctx`."""
    meta = row.get("meta")
    told = [row.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None]
    return next((each for each in told if isinstance(each, int) and each > 0), _CONTEXT)
