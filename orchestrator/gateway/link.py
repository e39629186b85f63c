"""The gateway's end of the control channel: takes route tables, reports what it sees.

While no supervisor is there the last table stays in force and the channel is dialled again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from pydantic import ValidationError

from orchestrator.control import (
    LINE_LIMIT,
    Failed,
    GatewayConfig,
    Hello,
    KeyTable,
    Report,
    RouteTable,
    encode,
    receive,
)
from orchestrator.gateway.keyring import KeyRing
from orchestrator.gateway.places import Lease
from orchestrator.gateway.routing import Router

_REDIAL_S = 0.2
_COALESCE_S = 0.05
_BEAT_S = 0.5  # between reports while anything is in flight: the supervisor judges progress by them

_log = logging.getLogger("engineroom.gateway")


class SupervisorLink:
    """Dials the supervisor for as long as the gateway lives."""

    def __init__(self, config: GatewayConfig, router: Router, keys: KeyRing) -> None:
        self._config, self._router, self._keys = config, router, keys
        self._writer: asyncio.StreamWriter | None = None
        self._pending: asyncio.TimerHandle | None = None
        self._soon = False

    @property
    def connected(self) -> bool:
        """Whether a supervisor is on the channel."""
        return self._writer is not None

    async def run(self) -> None:
        """Dial, listen, dial again; until cancelled. Returns where there is nobody to dial."""
        while (path := self._config.control_socket) is not None:
            try:
                await self._session(path)
            except (OSError, ValidationError) as error:
                _log.debug("control channel: %s", error)
            await asyncio.sleep(_REDIAL_S)

    async def _session(self, path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
        try:
            writer.write(encode(Hello(gateway=self._config.name, pid=os.getpid())))
            self._writer = writer
            _log.info("supervisor connected")
            while (message := await receive(reader)) is not None:
                if isinstance(message, RouteTable):
                    self._router.apply(message)
                    self._send_report()
                elif isinstance(message, KeyTable):
                    self._keys.apply(message.keys)
            _log.warning("supervisor is away; serving on with the last routes")
        finally:
            self._writer = None
            self._cancel()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def changed(self) -> None:
        """Counts changed: report soon, many changes at once."""
        if not self._soon and self._writer is not None:
            self._soon = True
            self._report_in(_COALESCE_S)

    def failed(self, lease: Lease, why: str) -> None:
        """An engine broke under a request. What it answered before is told before."""
        replica = lease.replica
        if self._writer is not None:
            self._send_report()
            failed = Failed(replica=replica.id, generation=replica.generation, why=why)
            self._writer.write(encode(failed))

    def _report_in(self, seconds: float) -> None:
        self._cancel()
        self._pending = asyncio.get_running_loop().call_later(seconds, self._send_report)

    def _cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    def _send_report(self) -> None:
        self._cancel()
        self._soon = False
        if self._writer is None:
            return
        in_flight = self._router.in_flight()
        report = Report(
            version=self._router.version,
            in_flight=in_flight,
            waiting=self._router.waiting(),
            served=self._router.served(),
            keep_alive=self._router.keep_alive,
            dealings=self._router.dealings(),
        )
        self._writer.write(encode(report))
        if any(in_flight.values()):
            self._report_in(_BEAT_S)
