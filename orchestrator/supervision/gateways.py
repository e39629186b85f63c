"""The supervisor's end of the control channel: tells gateways the routes, hears what they see."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from orchestrator.control import LINE_LIMIT, Failed, Hello, Report, RouteTable, encode, receive
from orchestrator.supervision.demand import Demand

_log = logging.getLogger("engineroom.control")


class GatewayLink:
    """A Unix socket that gateways dial. The table is sent whole, at once and after every change."""

    def __init__(
        self,
        path: Path,
        on_failed: Callable[[Failed], None],
        on_change: Callable[[], None],
    ) -> None:
        self._path = path
        self._on_failed, self._on_change = on_failed, on_change
        self._table = RouteTable(version=0)
        self._server: asyncio.Server | None = None
        self._reports: dict[asyncio.StreamWriter, Report | None] = {}

    async def start(self) -> None:
        """Listen; a socket left by a dead supervisor is replaced."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, path=str(self._path), limit=LINE_LIMIT
        )
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening, let go of every gateway, remove the socket."""
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._reports):
            writer.close()
        self._path.unlink(missing_ok=True)

    @property
    def connected(self) -> int:
        """Gateways on the channel."""
        return len(self._reports)

    def publish(self, table: RouteTable) -> None:
        """Remember the table and send it to every gateway."""
        self._table = table
        line = encode(table)
        for writer in self._reports:
            writer.write(line)

    def in_flight(self, replica: str) -> int:
        """Requests that the gateways last reported on one replica."""
        reports = [report for report in self._reports.values() if report]
        return sum(report.in_flight.get(replica, 0) for report in reports)

    def waiting(self) -> Counter[str]:
        """Requests that wait, by model."""
        total: Counter[str] = Counter()
        for report in self._reports.values():
            total.update(report.waiting if report else {})
        return total

    def demand(self, model: str) -> Demand:
        """What all gateways together tell of one model."""
        reports = [report for report in self._reports.values() if report]
        mine = [route for route in self._table.models if route.name == model]
        replicas = {each.id for route in mine for each in route.replicas}
        wishes = [r.keep_alive[model] for r in reports if model in r.keep_alive]
        return Demand(
            waiting=sum(report.waiting.get(model, 0) for report in reports),
            in_flight=sum(r.in_flight.get(each, 0) for r in reports for each in replicas),
            served=sum(report.served.get(model, 0) for report in reports),
            keep_alive=(-1.0 if -1.0 in wishes else max(wishes)) if wishes else None,
        )

    def idle(self, replica: str) -> bool:
        """Whether every gateway has the latest table and none has work on `replica`."""
        return all(
            report is not None
            and report.version >= self._table.version
            and not report.in_flight.get(replica)
            for report in self._reports.values()
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = await receive(reader)
            if not isinstance(hello, Hello):
                return
            _log.info("gateway=%s pid=%s connected", hello.gateway, hello.pid)
            self._reports[writer] = None
            writer.write(encode(self._table))
            self._on_change()
            while (message := await receive(reader)) is not None:
                if isinstance(message, Report):
                    self._reports[writer] = message
                    self._on_change()
                elif isinstance(message, Failed):
                    self._on_failed(message)
        except ValidationError as error:
            _log.error("a gateway sent a message that is not of this version: %s", error)
        finally:
            self._reports.pop(writer, None)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._on_change()
