"""The second level of health: does it answer? Readiness while it starts, life afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from orchestrator.errors import EngineRoomError
from orchestrator.runtimes.base import HandleRecord
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.starving import starved, turns
from orchestrator.supervision.workload import Workload

# A start is asked often at first, for the quick ones, then every half second.
_START_POLL_S, _START_POLL_MAX_S, _START_POLL_SHARE = 0.05, 0.5, 0.05
FAILURES = (EngineRoomError, TimeoutError, OSError, ValueError)
"""What a question to an engine may end in."""
_log = logging.getLogger("engineroom.instance")


@dataclass(frozen=True)
class ProbeTimes:
    """Seconds: between probes, the limit of one, without progress until a start has stalled, in
    which an engine that hangs under work has to be found.
    """

    interval_s: float
    timeout_s: float
    start_stall_s: float = 300.0
    hang_s: float = 45.0


class Prober:
    """Probes one process until cancelled, and posts what comes of it."""

    def __init__(
        self,
        record: HandleRecord,
        workload: Workload,
        times: ProbeTimes,
        now: Callable[[], lc.Lifecycle],
        post: Callable[[lc.Event], None],
        owns: Callable[[str, int], Awaitable[bool]],
    ) -> None:
        self._owns, self._listen = owns, record.reached
        self._generation = record.generation
        self._name, self._pid = record.name, record.child.pid if record.child else None
        self._url = record.reached.base_url if record.reached else None
        self._workload, self._times = workload, times
        self._now, self._post = now, post
        self._asked = asyncio.Event()
        self.answers = False
        """Whether it has answered at all: from then on our own canaries show in its log."""

    def probe_now(self) -> None:
        """Do not wait for the next interval."""
        self._asked.set()

    async def run(self) -> None:
        """Probe for ever. There is no limit for a start: whether it gets on is watched."""
        if self._url is None:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            self._asked.clear()
            asked = loop.time()
            state = self._now().state
            if state is not lc.State.STARTING:
                began = loop.time()
                await self._probe_life(self._url)
            elif self._now().asking is None:
                await self._probe_readiness(self._url)
            try:
                async with asyncio.timeout(self._pause(loop.time() - began, loop.time() - asked)):
                    await self._asked.wait()
            except TimeoutError:
                continue

    def _pause(self, starting_s: float, asked_s: float) -> float:
        """Until the next question; the last was put `asked_s` ago."""
        state, times = self._now().state, self._times
        if state is lc.State.STARTING:
            return max(_START_POLL_S, min(_START_POLL_MAX_S, _START_POLL_SHARE * starting_s))
        if state is lc.State.SUSPECT:  # one that had its whole time is asked again at once
            return max(_START_POLL_S, min(times.interval_s, times.timeout_s) - asked_s)
        return times.interval_s

    async def _probe_readiness(self, url: str) -> None:
        """It answers, and makes a token: what is loaded may still crash at first use."""
        try:
            await self._workload.alive(url)
            if await self._is_a_stranger():
                return
            self.answers = True
            await self._workload.canary(url)
        except FAILURES:
            return
        self._tell(lc.ProbeOk(self._generation), starting=True)

    async def _is_a_stranger(self) -> bool:
        """Whether somebody else answers: the port was free when it was chosen, and not kept."""
        listen = self._listen
        if listen is None or await self._owns(listen.host, listen.port):
            return False
        why = f"another process answers on {listen.host}:{listen.port}"
        self._tell(lc.PortTaken(self._generation, why), starting=True)
        return True

    async def _probe_life(self, url: str) -> None:
        loop = asyncio.get_running_loop()
        asked, before = loop.time(), turns(self._pid)
        try:
            async with asyncio.timeout(self._times.timeout_s):
                await self._workload.alive(url)
        except FAILURES as error:
            took = loop.time() - asked
            late = took >= self._times.timeout_s  # what answers at once does not starve
            if late and starved(before, turns(self._pid), took):
                _log.warning("engine=%s is starved: it gets next to no processor time", self._name)
                return
            why = str(error) or f"no answer within {self._times.timeout_s:g} s"
            self._tell(lc.ProbeFailed(self._generation, why), starting=False)
            return
        self._tell(lc.ProbeOk(self._generation), starting=False)

    def _tell(self, event: lc.Event, starting: bool) -> None:
        """An answer to a question that nobody asks any more says nothing."""
        if (self._now().state is lc.State.STARTING) == starting:
            self._post(event)
