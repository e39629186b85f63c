"""One supervised process: the task that owns its lifecycle.

Everybody posts events; `run` alone applies `step` and carries out the actions. Slow work (launch,
kill, replan, probes) happens in tasks whose result is the next event.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from engine_launchers.base import CrashCause, ExitResult, Listen
from orchestrator.errors import EngineRoomError, InsufficientMemory, LaunchFailed
from orchestrator.observability.logs import pairs
from orchestrator.runtimes.base import Handle, HandleRecord, Runtime
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.tails import read_tail
from orchestrator.supervision.workload import Workload

_log = logging.getLogger("engineroom.instance")
_START_POLL_S = 0.05


@dataclass(frozen=True)
class Change:
    """One transition, as the hooks see it."""

    old: lc.State
    new: lc.State
    why: str
    lifecycle: lc.Lifecycle
    seconds: float
    """Time spent in `old`."""


@dataclass(frozen=True)
class Hooks:
    """Called by the owner task; none but `admit` may block."""

    admit: Callable[[Instance], Awaitable[None]]
    """Returns when the machine has room for a launch; raises InsufficientMemory otherwise."""

    changed: Callable[[Instance, Change], None]
    saved: Callable[[Instance, HandleRecord], None]
    gone: Callable[[Instance], None]


@dataclass(frozen=True)
class ProbeTimes:
    """Seconds between probes, and the limit of one."""

    interval_s: float
    timeout_s: float


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Instance:
    """Owner of one process. Read `lifecycle` for display; post events to change it."""

    def __init__(
        self,
        workload: Workload,
        runtime: Runtime,
        policy: lc.Policy,
        probes: ProbeTimes,
        hooks: Hooks,
        generation: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workload = workload
        self.lifecycle = lc.Lifecycle(generation=generation)
        self.handle: Handle | None = None
        self.log: Path | None = None
        self.restarts = 0
        self._runtime, self._policy, self._probes, self._hooks = runtime, policy, probes, hooks
        self._clock = clock
        self._events: asyncio.Queue[lc.Event] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._ended = False
        self._entered = clock()
        self._launching: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._probe_now = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[lc.Timer, asyncio.TimerHandle] = {}

    @property
    def name(self) -> str:
        """Unique name, e.g. "demo-0"."""
        return self.workload.name

    @property
    def base_url(self) -> str | None:
        """Where the process listens, None while there is none."""
        listen = self.running.record.spec.listen if self.running else None
        return listen.base_url if listen else None

    @property
    def uptime_s(self) -> float | None:
        """Seconds since it became ready, None while it is not in service."""
        now = self.lifecycle
        if now.up_since is None or now.state not in lc.SERVING | {lc.State.DRAINING}:
            return None
        return self._clock() - now.up_since

    @property
    def running(self) -> Handle | None:
        """The handle of a process that lives; None before its launch and after its end."""
        handle, now = self.handle, self.lifecycle
        if handle is None or now.state not in lc.RUNNING:
            return None
        return handle if handle.record.generation == now.generation else None

    def post(self, event: lc.Event) -> None:
        """Hand an event to the owner task."""
        self._events.put_nowait(event)

    async def adopt(self, record: HandleRecord) -> bool:
        """Take over a process of an earlier supervisor; False where nothing is left of it."""
        handle = await self._runtime.recover(record)
        if handle is None:
            return False
        self._take(handle)
        self.post(lc.Adopted(record.generation))
        return True

    async def wait_for(self, states: frozenset[lc.State]) -> lc.State:
        """Wait until the lifecycle is in one of `states`, or its owner has ended."""
        return await self.wait_until(lambda now: now.state in states)

    async def wait_until(self, check: Callable[[lc.Lifecycle], bool]) -> lc.State:
        """Wait until `check` holds of the lifecycle, or its owner has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: check(self.lifecycle) or self._ended)
            return self.lifecycle.state

    async def run(self) -> None:
        """Apply events until cancelled."""
        try:
            while True:
                await self._apply(await self._events.get())
        finally:
            self._ended = True
            async with self._changed:
                self._changed.notify_all()
            for timer in self._timers.values():
                timer.cancel()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self.handle is not None:
                self.handle.detach()

    async def _apply(self, event: lc.Event) -> None:
        now, actions = lc.step(self.lifecycle, event, self._policy, self._clock())
        self.lifecycle = now
        for action in actions:
            self._carry_out(action)
        async with self._changed:
            self._changed.notify_all()

    def _carry_out(self, action: lc.Action) -> None:
        match action:
            case lc.Launch():
                self._launching = self._spawn(self._launch(action.generation))
            case lc.Kill():
                self._spawn(self._kill(action))
            case lc.Arm():
                self._arm(action)
            case lc.Probe():
                self._probe_now.set()
            case lc.Replan():
                self._spawn(self._replan(action))
            case lc.Announce():
                self._announce(action)

    def _announce(self, action: lc.Announce) -> None:
        elapsed = self._clock() - self._entered
        self._entered = self._clock()
        told = pairs(
            engine=self.name,
            generation=self.lifecycle.generation,
            old=action.old,
            new=action.new,
            why=action.why,
        )
        _log.info("%s", told)
        self._hooks.changed(
            self, Change(action.old, action.new, action.why, self.lifecycle, elapsed)
        )
        if action.new in {lc.State.STOPPED, lc.State.FAILED}:
            self.handle = None
            self._hooks.gone(self)

    def _arm(self, action: lc.Arm) -> None:
        if old := self._timers.pop(action.timer, None):
            old.cancel()
        event = lc.Deadline(action.generation, action.timer)
        loop = asyncio.get_running_loop()
        self._timers[action.timer] = loop.call_later(action.seconds, self.post, event)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("engine=%s task failed", self.name, exc_info=error)

    # --- work that posts events -----------------------------------------------------------------

    async def _replan(self, action: lc.Replan) -> None:
        changed = await self.workload.replan(action.cause)
        why = changed or f"no smaller plan is left after {action.cause.value}"
        self.post(lc.Replanned(action.generation, changed is not None, why))

    async def _launch(self, generation: int) -> None:
        """Start the process; whatever goes wrong on the way counts as an exit."""
        try:
            await self._room()
            listen = self.workload.listen() or Listen(port=free_port())
            spec = self.workload.command(listen)
            record = self._runtime.record(self.name, generation, spec)
            self.log = record.log
            self._hooks.saved(self, record)
            handle = await self._runtime.start(record)
        except (LaunchFailed, OSError, ValueError) as error:
            exit = ExitResult(error=f"could not be started: {error}")
            short = isinstance(error, InsufficientMemory)
            cause = CrashCause.NO_ROOM if short else CrashCause.UNKNOWN
            self.post(lc.Exited(generation, exit, cause, self._luck()))
            return
        self._hooks.saved(self, handle.record)
        self._take(handle)

    async def _room(self) -> None:
        """Wait for memory; a kill ends the waiting."""
        self._waiting = asyncio.ensure_future(self._hooks.admit(self))
        try:
            await asyncio.wait({self._waiting})
        finally:
            self._waiting.cancel()
        if self._waiting.cancelled():
            raise LaunchFailed("it was stopped before there was room for it")
        self._waiting.result()

    def _take(self, handle: Handle) -> None:
        self.handle, self.log = handle, handle.record.log
        handle.watch_record(lambda record: self._hooks.saved(self, record))
        self._spawn(self._watch(handle))
        self._spawn(self._probe(handle))

    async def _watch(self, handle: Handle) -> None:
        exit = await handle.wait()
        self.post(self._exit_event(handle.record.generation, exit, handle.record))

    def _exit_event(self, generation: int, exit: ExitResult, record: HandleRecord) -> lc.Exited:
        cause = self.workload.diagnose(exit, read_tail(record.log, 400, since=record.log_start))
        return lc.Exited(generation, exit, cause, self._luck())

    @staticmethod
    def _luck() -> float:
        return random.random()  # noqa: S311 - jitter

    async def _kill(self, action: lc.Kill) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._launching is not None:
            await asyncio.wait({self._launching})
        handle = self.handle
        if handle is not None and handle.record.generation == action.generation:
            await handle.stop(action.grace_s)

    async def _probe(self, handle: Handle) -> None:
        """Poll for readiness, then for life, until the process has ended."""
        generation, listen = handle.record.generation, handle.record.spec.listen
        if listen is None:
            return
        ended = asyncio.ensure_future(handle.wait())
        try:
            while not ended.done():
                starting = self.lifecycle.state is lc.State.STARTING
                self._probe_now.clear()
                await self._probe_once(generation, listen.base_url, starting)
                pause = _START_POLL_S if starting else self._probes.interval_s
                asked = asyncio.ensure_future(self._probe_now.wait())
                await asyncio.wait(
                    {ended, asked}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                )
                asked.cancel()
        finally:
            ended.cancel()

    async def _probe_once(self, generation: int, base_url: str, starting: bool) -> None:
        work = self.workload
        probe = work.ready if starting else work.alive
        limit = self._policy.start_timeout_s if starting else self._probes.timeout_s
        try:
            async with asyncio.timeout(limit):
                await probe(base_url)
        except (EngineRoomError, TimeoutError, OSError, ValueError) as error:
            if not starting:
                why = str(error) or f"no answer within {limit:g} s"
                self.post(lc.ProbeFailed(generation, why))
            return
        if not starting or await self._is_ours(generation):
            self.post(lc.ProbeOk(generation))

    async def _is_ours(self, generation: int) -> bool:
        """Whether what answers is what was started: anybody may have taken the port meanwhile."""
        handle = self.running
        listen = handle.record.spec.listen if handle else None
        if handle is None or listen is None or await handle.owns(listen.host, listen.port):
            return True
        why = f"another process answers on {listen.host}:{listen.port}"
        self.post(lc.PortTaken(generation, why))
        return False
