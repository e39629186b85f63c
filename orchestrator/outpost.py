"""`python -m orchestrator.outpost`: a gateway somewhere else than its supervisor.

It reads the settings that `engineroom serve` reads, dials `control_socket`, and starts nothing. All
that it knows of models, engines and named keys it is told there.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from typing import NoReturn

from orchestrator.control import GatewayConfig
from orchestrator.errors import ConfigError, EngineRoomError
from orchestrator.gateway_config import gateway_config
from orchestrator.keys import key_policy
from orchestrator.observability.extras import check_tracing
from orchestrator.settings import Settings, load_settings
from orchestrator.tls import check_certificate


def become(config: GatewayConfig) -> NoReturn:
    """Go on as a gateway process, which has in memory what a gateway needs and no more."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - without a name, and closed with the process
    file.write(config.model_dump_json().encode())
    file.flush()
    os.set_inheritable(file.fileno(), True)
    program = (sys.executable, "-m", "orchestrator.gateway", "--config", f"/dev/fd/{file.fileno()}")
    os.execv(program[0], program)  # noqa: S606 - our own interpreter and module


def config_of(settings: Settings) -> GatewayConfig:
    """What that gateway is started with. Raises ConfigError."""
    if settings.control is None:
        raise ConfigError("control_socket: set it to the socket that the supervisor listens on")
    hashes = key_policy(settings).hashes
    check_certificate(settings)
    check_tracing(settings.otlp_endpoint)
    name = f"gateway-{socket.gethostname()}"
    config = gateway_config(settings, name, hashes, str(settings.control))
    return config.model_copy(update={"end_s": settings.drain_s})


def main() -> None:
    """See the module."""
    try:
        become(config_of(load_settings()))
    except EngineRoomError as error:
        sys.stderr.write(f"error: {error.message}\n")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
