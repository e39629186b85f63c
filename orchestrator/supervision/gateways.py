"""The supervisor's end of the control channel: tells gateways the routes, hears what they see."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from orchestrator.control import (
    LINE_LIMIT,
    Dealings,
    Failed,
    Hello,
    KeyTable,
    Report,
    RouteTable,
    encode,
    receive,
)
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.demand import Demand
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.progress import Work

_log = logging.getLogger("engineroom.control")
STALE_S = 5.0


@dataclass(frozen=True)
class _Pace:
    """What a gateway had relayed from a replica at that time, and per second before it."""

    at: float
    relayed: int
    rate: float


class GatewayLink:
    """A Unix socket that gateways dial. The table is sent whole, at once and after every change."""

    def __init__(
        self,
        path: Path,
        post: Callable[[str, lc.Event], None],
        on_change: Callable[[], None],
        on_speed: Callable[[str, int, float], None] = lambda replica, generation, rate: None,
    ) -> None:
        """`post` takes the events of a replica, by its id; `on_speed` what single streams of one
        generation were decoded at, in tokens per second."""
        self._path = path
        self._post, self._on_change, self._on_speed = post, on_change, on_speed
        self._table, self._keys = RouteTable(version=0), KeyTable()
        self._server: asyncio.Server | None = None
        self._paces: dict[tuple[int, str, int], _Pace] = {}
        self._reports: dict[asyncio.StreamWriter, Report | None] = {}
        self._heard: dict[asyncio.StreamWriter, float] = {}

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

    def publish_keys(self, keys: KeyTable) -> None:
        """Remember the API keys and send them to every gateway."""
        self._keys = keys
        for writer in self._reports:
            writer.write(encode(keys))

    def in_flight(self, replica: str) -> int:
        """Requests that the gateways last reported on one replica."""
        reports = [report for report in self._reports.values() if report]
        return sum(report.in_flight.get(replica, 0) for report in reports)

    def work(self, instance: Instance) -> Work:
        """What the gateways have with the running generation of a replica.

        A gateway that says nothing for seconds stands still itself, and cannot tell.
        """
        replica, generation = instance.name, instance.lifecycle.generation
        now = asyncio.get_running_loop().time()
        fresh = [r for w, r in self._reports.items() if r and now - self._heard[w] < STALE_S]
        dealings = [d for r in fresh if (d := r.dealings.get(replica))]
        mine = [d for d in dealings if d.generation == generation]
        return Work(sum(d.owed for d in mine), sum(d.relayed for d in mine))

    def tokens_per_second(self, instance: Instance) -> float:
        """Events of answers that all gateways relay from it now; engines send one for each token.

        vLLM may put several tokens into one.
        """
        if not self.in_flight(instance.name):
            return 0.0
        now, generation = asyncio.get_running_loop().time(), instance.lifecycle.generation
        return sum(
            pace.rate
            for (_, replica, of), pace in self._paces.items()
            if (replica, of) == (instance.name, generation) and now - pace.at < STALE_S
        )

    def _keep_pace(self, writer: asyncio.StreamWriter, report: Report) -> None:
        """What was relayed since the report before, by replica."""
        now = asyncio.get_running_loop().time()
        fresh: dict[tuple[int, str, int], _Pace] = {}
        for replica, dealing in report.dealings.items():
            key = (id(writer), replica, dealing.generation)
            old = self._paces.get(key)
            rate = (dealing.relayed - old.relayed) / (now - old.at) if old and now > old.at else 0.0
            fresh[key] = _Pace(now, dealing.relayed, rate)
        others = {key: pace for key, pace in self._paces.items() if key[0] != id(writer)}
        self._paces = {**others, **fresh}

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
            keep_alive=max(wishes, key=lambda wish: wish.at).seconds if wishes else None,
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
            writer.write(encode(self._keys) + encode(self._table))  # in this order: none slips in
            self._on_change()
            while (message := await receive(reader)) is not None:
                if isinstance(message, Report):
                    self._keep_pace(writer, message)
                    self._take(writer, message)
                    self._on_change()
                elif isinstance(message, Failed):
                    broke = lc.RequestFailed(message.generation, message.why)
                    self._post(message.replica, broke)
        except ValidationError as error:
            _log.error("a gateway sent a message that is not of this version: %s", error)
        finally:
            self._reports.pop(writer, None)
            self._heard.pop(writer, None)
            self._paces = {key: pace for key, pace in self._paces.items() if key[0] != id(writer)}
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._on_change()

    def _take(self, writer: asyncio.StreamWriter, report: Report) -> None:
        old = self._reports.get(writer)
        self._reports[writer] = report
        self._heard[writer] = asyncio.get_running_loop().time()
        for replica, now in report.dealings.items():
            found = old.dealings.get(replica) if old else None
            before = found if found and found.generation == now.generation else None
            if now.answered > (before.answered if before else 0):
                self._post(replica, lc.Answered(now.generation))
            rate = solo_rate(before, now)
            if rate is not None and not self._elsewhere(writer, replica):
                self._on_speed(replica, now.generation, rate)

    def _elsewhere(self, writer: asyncio.StreamWriter, replica: str) -> bool:
        """Whether another gateway has requests there, of which this one knows nothing."""
        others = [r for w, r in self._reports.items() if r and w is not writer]
        return any(each.in_flight.get(replica) for each in others)


def solo_rate(before: Dealings | None, now: Dealings) -> float | None:
    """Tokens per second of the single streams that ended between two reports; None: there were
    none. `before` is of the same generation."""
    tokens = now.solo_tokens - (before.solo_tokens if before else 0)
    seconds = now.solo_s - (before.solo_s if before else 0.0)
    return tokens / seconds if tokens > 0 and seconds > 0 else None
