"""A lease for as long as a test holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.control import Replica
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.places import Lease
from orchestrator.gateway.routing import Router


@asynccontextmanager
async def leased(
    router: Router, ask: Ask | str, again: bool = False, avoid: Replica | None = None
) -> AsyncIterator[Lease]:
    """Wait for a place, hold it, give it back."""
    taken = await router.take(ask, again, avoid)
    try:
        yield taken
    finally:
        router.release(taken)
