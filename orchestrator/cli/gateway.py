"""`engineroom gateway`: one gateway alone, before a server that somebody else runs."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated, NoReturn

import typer

from orchestrator import __version__
from orchestrator.cli.options import Config
from orchestrator.control import GatewayConfig, ModelRoute, Replica, RouteTable
from orchestrator.errors import ConfigError
from orchestrator.external import address
from orchestrator.keys import key_policy
from orchestrator.settings import Settings, load_settings
from orchestrator.startup import all_launchers


def gateway(
    upstream: Annotated[str, typer.Option(help="The server, http://host:port.")],
    model: Annotated[str, typer.Option(help="The model's name, there and here.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8001].")] = None,
    engine: Annotated[
        str, typer.Option(help="Whose ways the server has: vllm, llama_server, llama_cpp, pytorch.")
    ] = "vllm",
    context: Annotated[int, typer.Option(help="Tokens that the model takes.")] = 131_072,
    places: Annotated[int, typer.Option(help="Requests that the server gets at once.")] = 1024,
    config: Config = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
) -> None:
    """Serve one model of any OpenAI-compatible server, with no supervisor: keys, limits, metrics.

    Settings about the gateway (api_keys, max_queue, the timeouts) are read as `serve` reads them.
    """
    flags = {"host": host, "port": port, "log_level": log_level}
    settings = load_settings({k: v for k, v in flags.items() if v is not None}, file=config)
    _become(_config(settings, _table(upstream, model, engine, context, places)))


def _become(config: GatewayConfig) -> NoReturn:
    """Go on as a gateway process, which has in memory what a gateway needs and no more."""
    reading, writing = os.pipe()
    os.write(writing, config.model_dump_json().encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    program = (sys.executable, "-m", "orchestrator.gateway", "--config", f"/dev/fd/{reading}")
    os.execv(program[0], program)  # noqa: S606 - our own interpreter and module


def _config(settings: Settings, table: RouteTable) -> GatewayConfig:
    return GatewayConfig(
        version=__version__,
        name="gateway",
        host=settings.host,
        port=settings.port,
        control_socket=None,
        key_hashes=key_policy(settings).hashes,
        max_queue=settings.max_queue,
        queue_timeout_s=settings.queue_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        stall_timeout_s=settings.stall_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        stream_comment_s=settings.stream_comment_s,
        head_timeout_s=settings.head_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        log_level=settings.log_level,
        table=table,
    )


def _table(upstream: str, model: str, engine: str, context: int, places: int) -> RouteTable:
    launchers = all_launchers()
    launcher = next((each for name, each in launchers.items() if name == engine), None)
    if launcher is None:
        raise ConfigError(f"engine {engine!r}: give one of {', '.join(launchers)}")
    replica = Replica(
        id=f"{model}-0", generation=1, base_url=address(upstream).base_url, accepting=True,
        max_concurrency=places,
    )  # fmt: skip
    route = ModelRoute(
        name=model, state="ready", engine=engine, context=context, created=int(time.time()),
        routes=launcher.routes, quirks=launcher.quirks, replicas=(replica,),
    )  # fmt: skip
    return RouteTable(version=1, models=(route,))
