"""Connects the control plane's `/metrics` with what there is to see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from orchestrator.supervision.figures import Figures
from orchestrator.supervision.host import Host
from orchestrator.supervision.scraping import Scraper
from orchestrator.supervision.supervisor import Supervisor


@asynccontextmanager
async def observed(
    supervisor: Supervisor, client: httpx.AsyncClient, disk: Path, interval_s: float, limit_s: float
) -> AsyncIterator[None]:
    """Show machine, ledger and engines for as long as it lasts.

    `disk` is a path on the disk to tell of. Engines are asked every `interval_s` (0: never), and
    have `limit_s` for their answer.
    """
    host = Host(disk)
    ledger, keeper, metrics = supervisor.ledger, supervisor.keeper, supervisor.metrics
    figures = Figures(lambda: supervisor.crew, ledger, lambda: keeper.rooms, host.told)
    scraper = Scraper(lambda: supervisor.crew, metrics, client, interval_s, limit_s)
    metrics.machine.look, metrics.engines.look = figures.look, scraper.told
    await asyncio.to_thread(host.start)
    scraping = asyncio.create_task(scraper.run(), name="scraper")
    try:
        yield
    finally:
        host.stop()
        scraping.cancel()
        await asyncio.gather(scraping, return_exceptions=True)
