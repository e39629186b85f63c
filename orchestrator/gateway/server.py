"""The gateway's server: uvicorn's loop with our protocol, until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import socket
from types import FrameType

import uvicorn

from orchestrator.control import GatewayConfig
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.workers.seat import Seat
from orchestrator.gateway.workers.shop import opened
from orchestrator.gateway.workers.team import Alone, Team, joining, leading
from orchestrator.listening import listen, shared
from orchestrator.notify import Manager

_BACKLOG = 2048


def serve(config: GatewayConfig, path: str, seat: Seat | None = None) -> None:
    """Serve until SIGTERM; answers under way then get `end_s` to end.

    `path` is where the config was read, for the workers that this one starts; those have a `seat`.
    A service manager hears of it from the first. Raises PortTaken, or GatewayBusy where
    there is no room for several workers.
    """
    team: Team
    if seat is not None:
        listener, team = socket.socket(fileno=seat.listener), joining(seat)
    elif config.workers > 1:
        shop = opened(shared(config.host, config.port, config.workers))
        listener, team = shop.listeners[0], leading(shop, path, config.end_s)
    else:
        listener, team = listen(config.host, config.port, "port"), Alone()
    gateway = Gateway(config, team)
    if config.table is not None:
        gateway.router.apply(config.table)
        gateway.keys.apply(config.keys)
    # What stands now stands for ever, and requests leave no cycles behind: little is worth a look.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    manager = Manager(os.environ if seat is None else {})
    server = _Server(team, manager, uvicorn.Config(
        gateway.asgi,
        http=gateway.protocol,  # type: ignore[arg-type]
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(config.end_s),
        backlog=_BACKLOG,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    ))  # fmt: skip
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells the other workers when it is told to end, and the service manager how it is."""

    def __init__(self, team: Team, manager: Manager, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._team, self._manager = team, manager

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._beating = asyncio.create_task(self._manager.keep_alive())
        self._manager.ready("serves")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._manager.stopping("answers under way may end")
        await super().shutdown(sockets)
        self._beating.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._team.end()
        super().handle_exit(sig, frame)
