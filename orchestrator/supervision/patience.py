"""Waiting for what has to come before a launch: room, an image."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from orchestrator.errors import LaunchFailed


class Patience:
    """Of one launch: waits for one thing after another, until it is told to wait no more."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False

    async def wait(self, work: Coroutine[object, object, None]) -> None:
        """Return when `work` is done; raises what it raises, LaunchFailed where `end` came, before
        it too.
        """
        waiting = self._waiting = asyncio.ensure_future(work)
        if self._ended:
            waiting.cancel()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        if self._ended or waiting.cancelled():
            raise LaunchFailed("it was stopped before it was launched")
        if isinstance(outcome, BaseException):
            raise outcome

    def end(self) -> None:
        """Wait no more, now and later."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.cancel()
