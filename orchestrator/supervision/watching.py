"""The third and fourth levels of health: does it get on with its start, and with its work?"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from orchestrator.runtimes.base import HandleRecord
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.loading import Load, phase
from orchestrator.supervision.probing import FAILURES, ProbeTimes
from orchestrator.supervision.progress import Limits, Signs, Verdict, Watched, Work, judge
from orchestrator.supervision.vitals import Vitals
from orchestrator.supervision.workload import Workload

_log = logging.getLogger("engineroom.watch")
_LOAD_LOOK_S = 1.0
_BUSY = lc.SERVING | {lc.State.DRAINING}


class Watch:
    """Watches one process until cancelled, and posts `Stalled` where nothing moves."""

    def __init__(
        self,
        record: HandleRecord,
        workload: Workload,
        times: ProbeTimes,
        now: Callable[[], lc.Lifecycle],
        work: Callable[[], Work],
        post: Callable[[lc.Event], None],
        answers: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record, self._workload, self._times = record, workload, times
        self._now, self._work, self._post, self._clock = now, work, post, clock
        self._answers = answers
        self._url = record.reached.base_url if record.reached else None
        self._vitals = Vitals(record, workload.noise)
        self._limits = Limits(times.hang_s, max(4 * times.hang_s, workload.prefill_s))
        self._watched = Watched()
        self._looked = clock()
        self._singing: asyncio.Task[None] | None = None
        self._first = True
        self.load: Load | None = None

    async def run(self) -> None:
        """Look for ever."""
        try:
            while True:
                pause = await self._look()
                spent = self._clock() - self._looked  # a look at what hangs takes its whole time
                await asyncio.sleep(max(pause / 10, pause - spent))
        finally:
            self._hush()

    async def _look(self) -> float:
        """One look; the pause until the next."""
        seconds, self._looked = self._clock() - self._looked, self._clock()
        state = self._now().state
        if state is lc.State.STARTING:
            pause = min(_LOAD_LOOK_S, self._times.start_stall_s / 8)
            # While a machine, or we, stood still nothing can have grown.
            await self._look_at_load(min(seconds, 2 * pause))
            return pause
        self.load, self._first = None, False
        if state in _BUSY and self._url is not None:
            await self._look_at_work(self._url, seconds)
        else:
            self._watched = Watched()
        return self._limits.look_s

    # --- a start ------------------------------------------------------------------------------

    async def _look_at_load(self, seconds: float) -> None:
        self._watched = Watched()
        seen, lines = await asyncio.to_thread(self._vitals.evidence)
        before = self.load
        # A log of before a sleep tells nothing of the waking.
        step = phase(lines, self._workload.watch.phases) if before or self._first else None
        if before is None:
            self.load = Load(marks=seen, cpu_s=seen.cpu_s, phase=step)
            return
        if self._answers():  # what it logs from now on may be about our canaries
            seen = replace(seen, logged=0)
        stall_s = self._times.start_stall_s
        self.load = before.after(seconds, seen, step, stall_s)
        if (why := self.load.stalled(stall_s)) and self._now().state is lc.State.STARTING:
            self._post(lc.Stalled(self._record.generation, why, "start"))

    # --- work ---------------------------------------------------------------------------------

    async def _look_at_work(self, url: str, seconds: float) -> None:
        work = self._work()
        unseen = self._workload.watch.serial and not self._vitals.visible
        if work.owed == 0 or unseen:  # on another machine, without counters or canaries
            self._watched = Watched()
            self._hush()
            return
        cpu_s = await asyncio.to_thread(self._vitals.cpu_s)
        signs = Signs(work, await self._counters(url), cpu_s)
        self._watched, verdict = judge(self._watched, signs, seconds, self._limits)
        if verdict is Verdict.MOVING:
            self._hush()
        elif verdict is Verdict.DOUBT and self._singing is None:
            self._doubt()
        elif verdict is Verdict.STALLED:
            self._hush()
            quiet = self._watched.silence.quiet_s
            why = f"nothing moves for {quiet:.1f} s although {work.owed} requests wait for it"
            self._post(lc.Stalled(self._record.generation, why, "work"))

    async def _counters(self, url: str) -> tuple[float, ...] | None:
        try:
            async with asyncio.timeout(min(self._times.timeout_s, self._limits.look_s)):
                return await self._workload.counters(url)
        except FAILURES:
            return None

    # --- canaries -----------------------------------------------------------------------------

    def _doubt(self) -> None:
        """Work stands still: one token would prove that it is the work, not the engine."""
        if self._workload.watch.serial or self._url is None:
            return
        _log.info("engine=%s is in doubt: a canary is sent", self._record.name)
        self._singing = asyncio.ensure_future(self._sing(self._url))

    async def _sing(self, url: str) -> None:
        try:
            await self._workload.canary(url)
        except FAILURES as error:  # the doubt remains
            _log.info("engine=%s canary failed: %s", self._record.name, error)
            return
        self._watched = self._watched.sung()
        self._post(lc.Answered(self._record.generation))

    def _hush(self) -> None:
        if self._singing is not None:
            self._singing.cancel()
            self._singing = None

    async def canary(self) -> None:
        """Requests broke one after the other: is it they, or the engine?

        Behind other work a canary may wait for long: while that gets on, it says nothing. In a
        serial engine it would only wait.
        """
        if self._url is None or (self._workload.watch.serial and self._work().owed):
            return
        generation = self._record.generation
        try:
            async with asyncio.timeout(self._times.hang_s):
                await self._workload.canary(self._url)
        except FAILURES as error:
            gets_on = self._watched.signs and self._watched.silence.quiet_s < self._limits.doubt_s
            if isinstance(error, TimeoutError) and gets_on:
                return
            why = str(error) or f"no token within {self._times.hang_s:g} s"
            broken = f"requests break one after the other, and so does a canary: {why}"
            self._post(lc.Stalled(generation, broken, "requests"))
            return
        self._post(lc.Answered(generation))
