"""`python -m orchestrator.gateway --config FILE`: one gateway process, or a worker of one."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from orchestrator import __version__
from orchestrator.control import GatewayConfig
from orchestrator.errors import EngineRoomError
from orchestrator.gateway.server import serve
from orchestrator.gateway.workers.seat import OTHER_VERSION, Seat
from orchestrator.observability.logs import configure


def main() -> None:
    """Read the file and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="engineroom gateway", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seat", type=Seat.model_validate_json)
    given = parser.parse_args()
    config = GatewayConfig.model_validate_json(Path(given.config).read_text())
    configure(config.log_level, config.log_format)
    if given.seat is not None and config.version != __version__:
        told = f"this is version {__version__}, the gateway is {config.version}: start it anew"
        logging.getLogger("engineroom.gateway").error(told)
        raise SystemExit(OTHER_VERSION)
    try:
        serve(config, given.config, given.seat)
    except EngineRoomError as error:
        logging.getLogger("engineroom.gateway").error("%s", error.message)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
