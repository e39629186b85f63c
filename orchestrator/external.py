"""A running server by its address: what it serves becomes the plan, nothing is ours to size."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.parse import urlsplit

import httpx

from engine_launchers.base import EngineName, EnginePlan, Launcher, Listen, Tuning
from engine_launchers.model import ModelFormat, ModelSpec
from orchestrator.errors import ConfigError, EngineMissing
from orchestrator.models.names import model_name

_URL = re.compile(r"http://(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})/?")
_PATH = re.compile(r"(/[A-Za-z0-9._~%-]+)*/?")
_ASK_S = 10.0
_CONTEXT = 4096  # where a server does not tell its own
_LONGEST_LIST = 1 << 20  # bytes
_LONGEST_NAME = 256
_LONGEST_CONTEXT = 16_777_216
_FEW = 10  # names that a sentence holds
_STREAMS = 16  # that a server which batches is given at once


def address(url: str) -> Listen:
    """Host and port of `http://host:port`. Raises ConfigError."""
    match = _URL.fullmatch(url)
    port = int(match["port"]) if match else 0
    if match is None or not 0 < port < 65536:
        raise ConfigError(f"engine_url {url!r}: give http://host:port, without a path")
    return Listen(host=match["host"].strip("[]"), port=port)


def base_url(url: str) -> str:
    """Where a server has its API: `http://host:port`, or https, and perhaps a path before its
    `/v1`. Raises ConfigError."""
    parts = urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if (
        not good
        or parts.query
        or parts.fragment
        or parts.username
        or not _PATH.fullmatch(parts.path)
    ):
        raise ConfigError(
            f"upstream {url!r}: give http://host:port or https://host, and no more than a path"
        )
    return url.rstrip("/")


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
        raise ConfigError(f"{url} serves {_some(names)}, not {wanted}: name one of them")
    if wanted is None and len(rows) > 1:
        raise ConfigError(f"{url} serves {_some(names)}: name one of them as the model")
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
    rows = _listing(base)
    found = [row for row in rows if isinstance(row, dict) and _named(row)]
    if not found:
        raise EngineMissing(f"engine_url {base}: it serves no model with a usable name")
    return found


def _named(row: dict[str, Any]) -> bool:
    """Whether its name is one that a request can carry and a person can read."""
    name = row.get("id")
    return isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable()


def _listing(base: str) -> list[Any]:
    """What the server says it serves, read with a limit of size and of time."""
    try:
        body = asyncio.run(_get(f"{base}/v1/models"))
        rows = json.loads(body)["data"]
    except (
        httpx.HTTPError,
        TimeoutError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:
        raise EngineMissing(
            f"engine_url {base}: GET /v1/models was not answered as an OpenAI server does within "
            f"{_ASK_S:g} s ({type(error).__name__}); is it running there?"
        ) from error
    if not isinstance(rows, list):
        raise EngineMissing(f"engine_url {base}: its list of models is no list")
    return rows


async def _get(url: str) -> bytes:
    """The body of one answer. Raises EngineMissing for any but a 200 of sensible length."""
    plain = {"accept-encoding": "identity"}
    async with (
        asyncio.timeout(_ASK_S),
        httpx.AsyncClient(timeout=_ASK_S, trust_env=False) as client,
        client.stream("GET", url, headers=plain) as answer,
    ):
        if answer.status_code == 401:
            raise EngineMissing(f"{url}: HTTP 401: it wants a key, which is not supported yet")
        if answer.status_code != 200:
            raise EngineMissing(f"{url}: HTTP {answer.status_code}, not a list of models")
        body = b""
        async for part in answer.aiter_raw():
            body += part
            if len(body) > _LONGEST_LIST:
                raise EngineMissing(f"{url}: its list of models is too long or does not end")
        return body


def _some(names: list[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _context(row: dict[str, Any]) -> int:
    """Tokens per sequence: vLLM tells `max_model_len`, llama-server `meta.n_ctx`."""
    meta = row.get("meta")
    told = [row.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None]
    sensible = (n for n in told if type(n) is int and 0 < n <= _LONGEST_CONTEXT)
    return next(sensible, _CONTEXT)
