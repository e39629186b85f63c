"""`python -m orchestrator.gateway --config FILE`: one gateway process."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.control import GatewayConfig
from orchestrator.gateway.server import serve
from orchestrator.observability.logs import configure


def main() -> None:
    """Read the file and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="engineroom gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    config = GatewayConfig.model_validate_json(parser.parse_args().config.read_text())
    configure(config.log_level)
    serve(config)


if __name__ == "__main__":
    main()
