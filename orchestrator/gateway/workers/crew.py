"""The first worker looks after the others: starts them, replaces who ends or hangs, ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from orchestrator.gateway.workers.adding import added, without_gauges
from orchestrator.gateway.workers.line import Line, Unanswered
from orchestrator.gateway.workers.memory import Memory
from orchestrator.gateway.workers.seat import OTHER_VERSION
from orchestrator.gateway.workers.shop import Shop

_LOOK_S = 1.0
_SILENT_S = 8.0  # without a beat, and it is replaced: before probes take it for the whole gateway
_START_S = 60.0
_PAUSE_S, _MOST_PAUSE_S, _STABLE_S = 0.2, 5.0, 10.0
_ANSWER_S = 1.0
_END_S = 5.0  # beyond the time that answers under way have
_REMEMBER_S = 5.0  # between questions for what is to be known of those that die
_log = logging.getLogger("engineroom.gateway")


@dataclass
class _Mate:
    """Another worker's process, since when, and what it said of itself last."""

    process: asyncio.subprocess.Process
    line: Line
    since: float
    text: str = ""


class Crew:
    """All workers but the first, which this is part of."""

    def __init__(self, shop: Shop, config: str, memory: Memory, end_s: float) -> None:
        """`config` is the path of the gateway's config, or of a descriptor of this process. Answers
        under way have `end_s` at the end."""
        self._shop, self._config, self._memory = shop, config, memory
        self._mates: dict[int, _Mate] = {}
        self._departed, self._end_s = "", end_s
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, answer: Callable[[], Awaitable[str]], on_loss: Callable[[], None]) -> None:
        """Start them and keep them. `answer` is for who asks for the metrics of all; `on_loss` is
        called when what a dead worker held is free again."""
        numbers = range(1, self._shop.workers)
        self._tasks = [asyncio.create_task(self._keep(each, answer, on_loss)) for each in numbers]
        self._tasks += [asyncio.create_task(self._look()), asyncio.create_task(self._remember())]

    def end(self) -> None:
        """Tell them to end; may be called from a signal handler."""
        self._ending = True
        self._shop.close()
        for mate in self._mates.values():
            with contextlib.suppress(ProcessLookupError):
                mate.process.send_signal(signal.SIGTERM)

    async def ended(self) -> None:
        """Wait until they have; who takes too long is killed."""
        self.end()
        waits = [mate.process.wait() for mate in self._mates.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._end_s + _END_S):
                await asyncio.gather(*waits)
        for mate in self._mates.values():
            _kill(mate.process)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def totals(self, own: str, alike: Collection[str]) -> str:
        """`own` metrics and those of all others, also of those that are gone.

        Those named by `alike` are the same in all, not parts of a sum.
        """
        await asyncio.gather(*map(self._ask, self._mates.values()))
        texts = [own, self._departed, *(mate.text for mate in self._mates.values())]
        return await asyncio.to_thread(added, texts, alike)  # it takes a while

    async def _ask(self, mate: _Mate) -> None:
        with contextlib.suppress(Unanswered):  # then what it said before has to do
            mate.text = await mate.line.ask(_ANSWER_S)

    async def _keep(
        self, number: int, answer: Callable[[], Awaitable[str]], on_loss: Callable[[], None]
    ) -> None:
        """Have a worker of that number, whatever happens to it."""
        pause = _PAUSE_S / 2
        while not self._ending:
            began = time.monotonic()
            try:
                how = f"ended with {await self._live(number, answer)}"
            except Exception as error:  # noqa: BLE001 - without it, its share of clients would hang
                how = f"could not be started, or was lost: {error!r}"
            with self._memory.locked():
                self._memory.clear(number)
            on_loss()
            if self._ending:
                return
            stable = time.monotonic() - began >= _STABLE_S
            pause = _PAUSE_S if stable else min(2 * pause, _MOST_PAUSE_S)
            _log.error("worker %d %s; another one in %g s", number, how, pause)
            await asyncio.sleep(pause)

    async def _live(self, number: int, answer: Callable[[], Awaitable[str]]) -> int:
        """One worker from its start to its end; its exit code. Raises what the system says."""
        mate = self._mates[number] = await self._launch(number, answer)
        try:
            if self._ending:
                mate.process.terminate()
            await mate.line.run()
            return await mate.process.wait()
        finally:
            _kill(mate.process)
            del self._mates[number]
            if mate.process.returncode == OTHER_VERSION:  # what is installed now is to be started
                os.kill(os.getpid(), signal.SIGTERM)
            gone = without_gauges(mate.text)
            self._departed = await asyncio.to_thread(added, [self._departed, gone], ())

    async def _launch(self, number: int, answer: Callable[[], Awaitable[str]]) -> _Mate:
        here, there = socket.socketpair()
        try:
            with there:
                seat = self._shop.seat(number, there.fileno())
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "orchestrator.gateway",
                    "--config", self._config, "--seat", seat.model_dump_json(),
                    pass_fds=(*seat.descriptors, *descriptor_in(self._config)),
                )  # fmt: skip
        except BaseException:
            here.close()
            raise
        _log.info("worker %d of %d is pid %d", number, self._shop.workers, process.pid)
        return _Mate(process, Line(here, answer), time.monotonic())

    async def _remember(self) -> None:
        """Know what each has counted, before it can no longer be asked."""
        while True:
            await asyncio.sleep(_REMEMBER_S)
            await asyncio.gather(*map(self._ask, self._mates.values()))

    async def _look(self) -> None:
        """Replace who stands still, unless it is this worker that stood still."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            now, before = time.monotonic(), last
            last = now
            if now - before > 2 * _LOOK_S:
                continue
            beats = self._memory.beats()
            for number, mate in self._mates.items():
                since = beats[number]
                if now - (since or mate.since) > (_SILENT_S if since else _START_S):
                    _log.error("worker %d stands still; it is replaced", number)
                    _kill(mate.process)


def descriptor_in(path: str) -> tuple[int, ...]:
    """The descriptor of this process that a path stands for, where it does."""
    head, _, tail = path.rpartition("/")
    return (int(tail),) if head == "/dev/fd" else ()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
