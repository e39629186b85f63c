"""Both ends of the control channel over a real socket: what the supervisor learns, and in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from prometheus_client import CollectorRegistry

from engine_launchers.base import Quirks
from orchestrator.control import GatewayConfig, ModelRoute, Replica, RouteTable
from orchestrator.gateway.keyring import KeyRing
from orchestrator.gateway.link import SupervisorLink
from orchestrator.gateway.routing import Router
from orchestrator.observability.key_metrics import KeyMetrics
from orchestrator.supervision import gateways
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.gateways import GatewayLink
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.progress import Work
from tests.harness import SLACK
from tests.leases import leased


def table(generation: int) -> RouteTable:
    replica = Replica(
        id="m-0", generation=generation, base_url="http://x", accepting=True, max_concurrency=4
    )
    route = ModelRoute(
        name="m", state="ready", engine="fake", context=100, created=0, routes=frozenset(),
        quirks=Quirks(), replicas=(replica,),
    )  # fmt: skip
    return RouteTable(version=generation, models=(route,))


def running(generation: int) -> Instance:
    """As much of an instance as the channel looks at."""
    known = SimpleNamespace(name="m-0", lifecycle=lc.Lifecycle(generation=generation))
    return cast(Instance, known)


class Channel:
    """One supervisor, one gateway, and the events that came over."""

    def __init__(self, socket: Path) -> None:
        self.events: list[lc.Event] = []
        self.speeds: list[tuple[str, int, float]] = []
        self.heard = asyncio.Event()
        self.here = GatewayLink(
            socket,
            lambda _, event: self.events.append(event),
            self.heard.set,
            lambda *told: self.speeds.append(told),
        )
        config = GatewayConfig(
            version="1", name="g", host="x", port=1, control_socket=str(socket), max_queue=9,
            queue_timeout_s=9, max_body_bytes=9, stall_timeout_s=9,
        write_timeout_s=60, log_level="info",
        )  # fmt: skip
        self.router = Router(9, 9.0, lambda: self.there.changed())
        self.keys = KeyRing((), KeyMetrics(CollectorRegistry()), time.monotonic, time.time)
        self.there = SupervisorLink(config, self.router, self.keys)

    async def until(self, work: Work, generation: int = 1) -> None:
        async with asyncio.timeout(5 * SLACK):
            while self.here.work(running(generation)) != work:
                self.heard.clear()
                await self.heard.wait()


@asynccontextmanager
async def open_channel(tmp_path: Path) -> AsyncIterator[Channel]:
    channel = Channel(tmp_path / "s")
    channel.here.publish(table(1))
    await channel.here.start()
    dialling = asyncio.create_task(channel.there.run())
    await channel.heard.wait()
    try:
        yield channel
    finally:
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        await channel.here.close()


async def test_the_supervisor_learns_what_an_engine_owes_and_has_relayed(tmp_path: Path) -> None:
    async with open_channel(tmp_path) as channel:
        await asyncio.wait_for(known(channel), 5 * SLACK)
        async with leased(channel.router, "m") as lease:
            with lease.tally.owing():
                await channel.until(Work(1, 0))
                lease.tally.relayed += 3  # nobody reports that: the next beat does
                await channel.until(Work(1, 3))
            await channel.until(Work(0, 3))
            assert channel.here.work(running(2)) == Work()
            lease.tally.answered += 1
        channel.there.failed(lease, "broke")
        lease.tally.answered += 1
        channel.there.changed()
        async with asyncio.timeout(5 * SLACK):
            while len(channel.events) < 3:
                channel.heard.clear()
                await channel.heard.wait()
        assert channel.events == [lc.Answered(1), lc.RequestFailed(1, "broke"), lc.Answered(1)]


async def test_the_supervisor_learns_what_single_streams_are_decoded_at(tmp_path: Path) -> None:
    async with open_channel(tmp_path) as channel:
        await asyncio.wait_for(known(channel), 5 * SLACK)
        for tokens, seconds in ((100, 2.0), (30, 1.0)):
            async with leased(channel.router, "m") as lease:
                lease.tally.solo.tokens += tokens
                lease.tally.solo.seconds += seconds
            told = len(channel.speeds)
            async with asyncio.timeout(5 * SLACK):
                while len(channel.speeds) == told:
                    channel.heard.clear()
                    await channel.heard.wait()
        assert channel.speeds == [("m-0", 1, 50.0), ("m-0", 1, 30.0)]


async def test_a_gateway_that_stands_still_cannot_accuse_an_engine(tmp_path: Path) -> None:
    async with open_channel(tmp_path) as channel:
        await asyncio.wait_for(known(channel), 5 * SLACK)
        async with leased(channel.router, "m") as lease:
            with lease.tally.owing():
                await channel.until(Work(1, 0))
                for writer in channel.here._heard:
                    channel.here._heard[writer] -= gateways.STALE_S
                assert channel.here.work(running(1)) == Work()


async def known(channel: Channel) -> None:
    """Until the gateway has the table."""
    while not channel.router.known:
        channel.heard.clear()
        await channel.heard.wait()
