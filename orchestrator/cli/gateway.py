"""`engineroom gateway`: one gateway alone, before a server that somebody else runs."""

from __future__ import annotations

import re
import sys
import time
from typing import Annotated

import typer

from engine_launchers.base import Listen
from orchestrator import compiled
from orchestrator.cli.options import Config, Drain, Workers
from orchestrator.control import GatewayConfig, ModelRoute, Replica, RouteTable
from orchestrator.errors import ConfigError
from orchestrator.external import base_url
from orchestrator.gateway_config import gateway_config
from orchestrator.keyfile import KeyFile
from orchestrator.keys import key_policy, keys_path
from orchestrator.listening import listen, port_of
from orchestrator.observability.extras import check_tracing
from orchestrator.outpost import become
from orchestrator.settings import Settings, load_settings
from orchestrator.startup import all_launchers
from orchestrator.tls import check_certificate

_KEY = re.compile(r"[\x21-\x7e]+")


def gateway(
    upstream: Annotated[str, typer.Option(help="The server: http(s)://host[:port][/path].")],
    model: Annotated[str, typer.Option(help="The model's name, there and here.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8001].")] = None,
    engine: Annotated[
        str, typer.Option(help="Whose ways the server has: vllm, llama_server, llama_cpp, pytorch.")
    ] = "vllm",
    context: Annotated[int, typer.Option(help="Tokens that the model takes.")] = 131_072,
    places: Annotated[int, typer.Option(help="Requests that the server gets at once.")] = 1024,
    gateway_workers: Workers = None,
    drain_s: Drain = None,
    config: Config = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
) -> None:
    """Serve one model of any OpenAI-compatible server, with no supervisor: keys, limits, metrics.

    Settings about the gateway (api_keys, max_queue, the timeouts) are read as `serve` reads them.
    A key for the upstream comes from ENGINEROOM_UPSTREAM_KEY.
    """
    flags = {
        "host": host, "port": port, "log_level": log_level, "gateway_workers": gateway_workers,
        "drain_s": drain_s,
    }  # fmt: skip
    settings = load_settings({k: v for k, v in flags.items() if v is not None}, file=config)
    made = _config(settings, _table(upstream, model, engine, context, places))
    with listen(made.host, made.port, "port") as free:  # 0 takes any
        made = made.model_copy(update={"port": port_of(free)})
    door = Listen(host=made.host, port=made.port, tls=made.tls_cert is not None).base_url
    sys.stderr.write(f"gateway on {door}, before {upstream}, model {model}; Ctrl-C ends it\n")
    become(made)


def _config(settings: Settings, table: RouteTable) -> GatewayConfig:
    """Raises ConfigError for keys or a certificate that cannot be used."""
    hashes = key_policy(settings).hashes
    check_certificate(settings)
    check_tracing(settings.otlp_endpoint)
    compiled.check()
    grants = tuple(KeyFile(keys_path(settings)).all())
    config = gateway_config(settings, "gateway", hashes, None, table, grants)
    key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
    if key is not None and not _KEY.fullmatch(key):
        raise ConfigError("upstream_key has characters that no header may have")
    return config.model_copy(update={"upstream_key": key, "end_s": settings.drain_s})


def _table(upstream: str, model: str, engine: str, context: int, places: int) -> RouteTable:
    if not model.strip() or places < 1 or context < 1:
        raise ConfigError("--model needs a name, --places and --context at least 1")
    launchers = all_launchers()
    launcher = next((each for name, each in launchers.items() if name == engine), None)
    if launcher is None:
        raise ConfigError(f"engine {engine!r}: give one of {', '.join(launchers)}")
    replica = Replica(
        id=f"{model}-0", generation=1, base_url=base_url(upstream), accepting=True,
        max_concurrency=places,
    )  # fmt: skip
    route = ModelRoute(
        name=model, state="ready", engine=engine, context=context, created=int(time.time()),
        routes=launcher.routes, quirks=launcher.quirks, replicas=(replica,),
    )  # fmt: skip
    return RouteTable(version=1, models=(route,))
