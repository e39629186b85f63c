"""The gateway's server: uvicorn's loop with our protocol, until SIGTERM."""

from __future__ import annotations

import gc

import uvicorn

from orchestrator.control import GatewayConfig
from orchestrator.gateway.app import Gateway


def serve(config: GatewayConfig) -> None:
    """Serve until SIGTERM; open answers then get a few seconds to end."""
    gateway = Gateway(config)
    if config.table is not None:
        gateway.router.apply(config.table)
        gateway.keys.apply(config.keys)
    # What stands now stands for ever, and requests leave no cycles behind: little is worth a look.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    uvicorn.run(
        gateway.asgi,
        host=config.host,
        port=config.port,
        http=gateway.protocol,  # type: ignore[arg-type]
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
        backlog=2048,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    )
