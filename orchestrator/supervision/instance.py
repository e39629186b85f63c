"""One supervised process: the task that owns its lifecycle.

Everybody posts events; `run` alone applies `step` and carries out the actions. Slow work (launch,
kill, replan, probes) happens in tasks whose result is the next event.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine_launchers.base import CrashCause, ExitResult, LaunchSpec, Listen
from orchestrator.errors import InsufficientMemory, LaunchFailed
from orchestrator.observability.logs import told
from orchestrator.runtimes.base import Handle, HandleRecord, Runtime
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.loading import Load, Phase
from orchestrator.supervision.patience import Patience
from orchestrator.supervision.probing import FAILURES, Prober, ProbeTimes
from orchestrator.supervision.progress import Work
from orchestrator.supervision.tails import read_tail
from orchestrator.supervision.watching import Watch
from orchestrator.supervision.workload import Workload

_log = logging.getLogger("engineroom.instance")
_NOWHERE = Listen(host="127.0.0.1", port=1)  # what has to be fetched does not depend on the address


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

    admit: Callable[[Instance], Coroutine[object, object, None]]
    """Returns when the machine has room for a launch; raises InsufficientMemory otherwise."""

    changed: Callable[[Instance, Change], None]
    saved: Callable[[Instance, HandleRecord], None]
    gone: Callable[[Instance], None]
    work: Callable[[Instance], Work] = lambda instance: Work()
    """What the gateways have with it now."""

    held_anew: Callable[[Instance, HandleRecord], None] = lambda instance, record: None
    """Its shim was lost while it lived; the record names the one that took over."""


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
        self._patience = Patience()
        self._prober: Prober | None = None
        self._watch: Watch | None = None
        self._before: Load | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[lc.Timer, asyncio.TimerHandle] = {}

    @property
    def name(self) -> str:
        """Unique name, e.g. "demo-0"."""
        return self.workload.name

    @property
    def base_url(self) -> str | None:
        """Where the process listens, None while there is none."""
        reached = self.running.record.reached if self.running else None
        return reached.base_url if reached else None

    @property
    def uptime_s(self) -> float | None:
        """Seconds since it became ready, None while it is not in service."""
        now = self.lifecycle
        if now.up_since is None or now.state not in lc.SERVING | {lc.State.DRAINING}:
            return None
        return self._clock() - now.up_since

    @property
    def loading(self) -> Load | None:
        """How far its start is, None while it is not starting."""
        if self.lifecycle.state is not lc.State.STARTING:
            return None
        return self._before or self.loaded

    @property
    def loaded(self) -> Load | None:
        """The start that was watched last, until the watch looks at its work."""
        return self._watch.load if self._watch else None

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
        self.post(lc.Adopted(record.generation, record.asleep))
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
                self._patience = Patience()
                self._launching = self._spawn(self._launch(action.generation, self._patience))
            case lc.Kill():
                self._patience.end()
                self._spawn(self._kill(action))
            case lc.Arm():
                self._arm(action)
            case lc.Probe():
                if self._prober is not None:
                    self._prober.probe_now()
            case lc.Canary():
                if self._watch is not None:
                    self._spawn(self._watch.canary())
            case lc.PutToSleep():
                self._spawn(self._sleep(action))
            case lc.WakeUp():
                self._spawn(self._wake(action))
            case lc.Replan():
                self._spawn(self._replan(action))
            case lc.Announce():
                self._announce(action)

    def _announce(self, action: lc.Announce) -> None:
        elapsed = self._clock() - self._entered
        self._entered = self._clock()
        fields = told(
            engine=self.name,
            generation=self.lifecycle.generation,
            old=action.old,
            new=action.new,
            why=action.why,
        )
        _log.info("state", extra=fields)
        change = Change(action.old, action.new, action.why, self.lifecycle, elapsed)
        self._hooks.changed(self, change)
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
        why = changed or f"no smaller plan is left after {self.lifecycle.why}"
        self.post(lc.Replanned(action.generation, changed is not None, why))

    async def _launch(self, generation: int, patience: Patience) -> None:
        """Start the process; whatever goes wrong on the way counts as an exit."""
        try:
            await patience.wait(self._prepared())
            await patience.wait(self._hooks.admit(self))
            spec = self._command(self._runtime.listen)
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

    def _command(self, listen: Callable[[], Listen]) -> LaunchSpec:
        return self.workload.command(self.workload.listen() or listen())

    async def _prepared(self) -> None:
        """Have the runtime fetch what it needs; how far it is shows as the start's load."""
        began = self._clock()

        def tell(what: str, percent: float) -> None:
            self._before = Load(seconds=self._clock() - began, phase=Phase(what, percent))

        try:
            await self._runtime.prepare(self._command(lambda: _NOWHERE), tell)
        finally:
            self._before = None

    def _take(self, handle: Handle) -> None:
        self.handle, self.log = handle, handle.record.log
        handle.watch_record(self._held_anew)
        self._spawn(self._attend(handle))

    async def _attend(self, handle: Handle) -> None:
        """Probe and watch a process until it has ended."""
        record, now = handle.record, lambda: self.lifecycle
        self._prober = prober = Prober(
            record, self.workload, self._probes, now, self.post, handle.owns
        )
        work, answers = partial(self._hooks.work, self), lambda: prober.answers
        watch = Watch(record, self.workload, self._probes, now, work, self.post, answers)
        self._watch = watch
        around = (self._spawn(prober.run()), self._spawn(watch.run()))
        try:
            exit = await handle.wait()
        finally:
            for task in around:
                task.cancel()
        self.post(self._exit_event(record.generation, exit, record))

    def _note(self, level: int | None) -> None:
        """Write down how deep it sleeps: a later supervisor has to know before it asks."""
        if (running := self.running) is not None:
            self._hooks.saved(self, running.record.model_copy(update={"asleep": level}))

    def _held_anew(self, record: HandleRecord) -> None:
        now = self.lifecycle
        level = now.level if now.state is lc.State.SLEEPING or now.asking else None
        self._hooks.held_anew(self, record.model_copy(update={"asleep": level}))

    async def _sleep(self, action: lc.PutToSleep) -> None:
        self._note(action.level)
        try:
            async with asyncio.timeout(self._probes.start_stall_s):
                await self.workload.sleep(self.base_url or "", action.level)
        except FAILURES as error:
            why = str(error) or f"not asleep after {self._probes.start_stall_s:g} s"
            self.post(lc.SleepFailed(action.generation, why))
            return
        self.post(lc.Slept(action.generation))

    async def _wake(self, action: lc.WakeUp) -> None:
        try:  # how long it may take is watched, as for every start
            await self._patience.wait(self._hooks.admit(self))
            await self.workload.wake(self.base_url or "", action.level)
        except FAILURES as error:
            self.post(lc.WakeFailed(action.generation, str(error)))
            return
        self._note(None)
        self.post(lc.Woken(action.generation))

    def _exit_event(self, generation: int, exit: ExitResult, record: HandleRecord) -> lc.Exited:
        cause = self.workload.diagnose(exit, read_tail(record.log, 400, since=record.log_start))
        return lc.Exited(generation, exit, cause, self._luck())

    @staticmethod
    def _luck() -> float:
        return random.random()  # noqa: S311 - jitter

    async def _kill(self, action: lc.Kill) -> None:
        if self._launching is not None:
            await asyncio.wait({self._launching})
        handle = self.handle
        if handle is not None and handle.record.generation == action.generation:
            await handle.stop(action.grace_s)
