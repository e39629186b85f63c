"""Serving: uvicorn without its own signals, the loop's watcher, and the way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Iterator

import uvicorn
from pytorch_bodies import Refused
from pytorch_engine import Engine, failed
from pytorch_flags import Options
from pytorch_http import Face
from pytorch_loop import Loop
from pytorch_metrics import Metrics
from pytorch_model import Loaded

WATCH_S = 0.05
FAREWELL_S = 1.0  # for the last bytes of answers that were ended


class Quiet(uvicorn.Server):
    """uvicorn would answer SIGTERM itself: wait without end, and die of the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the service."""
        yield


class Service:
    """One server from the first request to the end."""

    def __init__(self, loaded: Loaded, options: Options, loop: Loop, key: str) -> None:
        self._engine = Engine(loaded, options, loop, Metrics())
        self._patience = options.shutdown_timeout
        app = Face(self._engine, key, int(time.time())).app()
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, server_header=False,
            lifespan="off", timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = Quiet(config)

    async def run(self, listener: socket.socket) -> str | None:
        """Serve until SIGTERM (None) or until the batching loop dies (why)."""
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        death = asyncio.create_task(died(self._engine))
        stop = asyncio.create_task(told.wait())
        await asyncio.wait({death, stop, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not death.done():
            await self._drain(death)
        why = death.result() if death.done() else None
        if why is not None:
            self._engine.end_all(failed(why))
            await self._emptied(FAREWELL_S)
        self._server.should_exit = True
        if why is None:
            await serving
        return why

    async def _drain(self, death: asyncio.Task[str]) -> None:
        """Open requests may end by themselves for a while, then they are ended."""
        self._engine.refuse_new("the engine is stopping")
        done = asyncio.create_task(self._emptied(self._patience))
        await asyncio.wait({done, death}, return_when=asyncio.FIRST_COMPLETED)
        if not death.done():
            why = "the engine was stopped"
            self._engine.end_all(
                Refused(why, status=503, kind="unavailable_error", code="engine_stopped")
            )
            await self._emptied(FAREWELL_S)

    async def _emptied(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._engine.emptied(), seconds)


async def died(engine: Engine) -> str:
    """Why the engine died, once it has; the loop's thread tells nobody, so it is asked."""
    never = asyncio.Event()
    while (why := engine.death()) is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(never.wait(), WATCH_S)
    return why
