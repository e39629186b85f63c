"""`python -m orchestrator.gateway --config FILE`: one gateway process."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import uvicorn

from orchestrator.control import GatewayConfig
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.doors import Doors
from orchestrator.gateway.visitors import Visitors
from orchestrator.observability.logs import configure


def main() -> None:
    """Serve until SIGTERM; open answers then get a few seconds to end."""
    parser = argparse.ArgumentParser(prog="engineroom gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    config = GatewayConfig.model_validate_json(parser.parse_args().config.read_text())
    configure(config.log_level)
    gateway = Gateway(config)
    gc.collect()
    gc.freeze()
    uvicorn.run(
        Visitors(gateway.app, Doors(config.allowed_hosts, config.cors_origins)),
        host=config.host,
        port=config.port,
        http=gateway.connections.protocol,  # type: ignore[arg-type]
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
