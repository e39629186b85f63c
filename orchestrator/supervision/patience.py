"""Waiting for what has to come before a launch: room, an image."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from orchestrator.errors import LaunchFailed


class Patience:
    """Waits for one thing at a time, until it is told to wait no more."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None

    async def wait(self, work: Awaitable[None]) -> None:
        """Return when `work` is done; raises what it raises, LaunchFailed where `end` came."""
        waiting = self._waiting = asyncio.ensure_future(work)
        try:
            await asyncio.wait({waiting})
        finally:
            waiting.cancel()
        if waiting.cancelled():
            raise LaunchFailed("it was stopped before it was launched")
        waiting.result()

    def end(self) -> None:
        """Wait no more."""
        if self._waiting is not None:
            self._waiting.cancel()
