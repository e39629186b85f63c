"""One served model: its engines, and the orders that concern all of them together.

A pool has `replicas` places. An engine is replaced by starting the new one first wherever memory
allows: only then the old one drains. Where it does not, and no other replica serves, requests wait
in the gateways' queues until the new one is ready.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from functools import partial

from engine_launchers.base import EnginePlan
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.crew import Crew
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.ledger import planned
from orchestrator.supervision.orders import ModelOrder
from orchestrator.supervision.schedule import Phase
from orchestrator.supervision.workloads import EngineWorkload

_log = logging.getLogger("engineroom.pool")
S = lc.State
AT_REST = frozenset({S.STOPPED, S.FAILED})
_UNDER_WAY = frozenset({S.STARTING, S.BACKOFF})

Make = Callable[[ModelOrder, str, int], Instance]
"""Makes the instance of an order by its name, to go on after that generation."""


class Pool:
    """The engines of one model. `wanted` keeps it loaded without requests, `off` out for good."""

    def __init__(
        self,
        order: ModelOrder,
        make: Make,
        crew: Crew,
        has_room: Callable[[EnginePlan], bool],
        tell: Callable[..., None],
    ) -> None:
        self.order = order
        self.wanted, self.off = order.preload, False
        self.why = ""
        self.refused_until = 0.0
        self._refused = asyncio.Event()
        self._closed = False
        self.asked = order
        """What the settings asked for last; an operator's orders change `order` only."""
        self.leaving = False
        self.heir: ModelOrder | None = None
        """Taken over when the pool has left: the model came back meanwhile."""
        self.created = int(time.time())
        self._make, self._crew, self._has_room, self._tell = make, crew, has_room, tell
        self._members: list[str] = []
        self._going: set[str] = set()
        self._generations: dict[str, int] = {}
        self._rolling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.order.name

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Its engines, the oldest first."""
        found = (self._crew.get(name) for name in self._members)
        return tuple(instance for instance in found if instance is not None)

    @property
    def plan(self) -> EnginePlan:
        """The plan in use, relaxed or not; of the engine that serves, where one does."""
        by_age = sorted(self.instances, key=lambda each: each.lifecycle.state not in lc.SERVING)
        workload = by_age[0].workload if by_age else None
        return workload.plan if isinstance(workload, EngineWorkload) else self.order.plan

    @property
    def need(self) -> Mapping[str, int]:
        """Bytes by device that loading all replicas takes."""
        return planned(self.plan.estimate, self.order.replicas)

    @property
    def changing(self) -> bool:
        """Whether its engines are being replaced: it will serve again."""
        return self._rolling.locked()

    @property
    def phase(self) -> Phase:
        """Where it stands, all replicas together."""
        states = {each.lifecycle.state for each in self.instances}
        again = any(
            each.lifecycle.after != "stay" and each.lifecycle.state in {S.STOPPING, S.DRAINING}
            for each in self.instances
        )
        if states & lc.SERVING:
            return Phase.SERVING
        if states & _UNDER_WAY or again or self.changing:
            return Phase.LOADING
        if states & {S.STOPPING, S.DRAINING}:
            return Phase.LEAVING
        if S.SLEEPING in states:
            return Phase.ASLEEP
        if S.FAILED in states:
            return Phase.FAILED
        return Phase.OFF if self.off else Phase.ABSENT

    # --- orders, each returns at once -------------------------------------------------------------

    def hire(self, name: str, generation: int) -> Instance:
        """Give a place to an engine of that name; it is not started yet."""
        instance = self._make(self.order, name, generation)
        self._members.append(name)
        self._crew.add(instance)
        return instance

    def fill(self) -> None:
        """Make instances for all places."""
        while len(self._members) < self.order.replicas:
            self._fresh()

    def trim(self, adopted: Collection[str]) -> None:
        """After a start: running engines take the places, what is too many drains."""
        self._members.sort(key=lambda name: name not in adopted)
        for extra in self.instances[self.order.replicas :]:
            self._going.add(extra.name)
            self.spawn(partial(self._dismiss, extra, 30.0, "one too many"))

    async def settled(self) -> None:
        """Wait until every engine is READY or FAILED, or the model was refused its place."""
        settled = frozenset({S.READY, S.FAILED})
        places = self.instances[: self.order.replicas]

        async def all_settled() -> None:
            await asyncio.gather(*(each.wait_for(settled) for each in places))

        async def refused() -> None:
            await self._refused.wait()

        ways = {asyncio.create_task(all_settled()), asyncio.create_task(refused())}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()

    def stay_out(self) -> None:
        """Not to be loaded until an operator starts it."""
        self.off, self.wanted, self.why = True, False, "stopped by an operator"

    def refuse(self, why: str, until: float) -> None:
        """Nothing can be done for it before `until` (monotonic)."""
        self.why, self.refused_until, self.wanted = why, until, False
        self._refused.set()

    def load(self, why: str) -> None:
        """Start what does not run."""
        self.off, self.why = False, ""
        self._refused.clear()
        for each in self.instances:
            if each.name not in self._going:
                each.post(lc.Start(why))

    def unload(self, drain_s: float, why: str) -> None:
        """Drain and stop all engines."""
        for each in self.instances:
            each.post(lc.Stop(drain_s, "stay", why))

    def sleep(self, level: int, drain_s: float, why: str) -> None:
        """Put all engines to sleep; what cannot sleep is stopped."""
        for each in self.instances:
            each.post(lc.Sleep(drain_s, level, why))

    def spawn(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run one of the slow orders below; after `close` nothing is begun any more."""
        if self._closed:
            return
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("model=%s an order failed", self.name, exc_info=error)

    async def close(self) -> None:
        """Give up whatever is under way; engines are left as they are."""
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- slow orders, one at a time ---------------------------------------------------------------

    async def change(self, order: ModelOrder, drain_s: float, why: str) -> None:
        """Do what another order for the same model asks for, and touch nothing else."""
        if order.fingerprint != self.order.fingerprint:
            await self.roll(replace(order, replicas=self.order.replicas), drain_s, why)
        if order.replicas != self.order.replicas:
            await self.scale(order.replicas, drain_s)

    async def roll(self, order: ModelOrder, drain_s: float, why: str) -> None:
        """Replace every engine by one of `order`, without a gap where that is possible.

        It ends early where a new engine does not come up, or where somebody stops the model.
        """
        async with self._rolling:
            same = order.fingerprint == self.order.fingerprint
            before, self.order = self.order, order
            for number, old in enumerate(self.instances):
                if not await self._replace(old, drain_s, why, same):
                    if number == 0:  # the old one serves on: so does its order
                        self.order = replace(
                            order,
                            plan=before.plan,
                            program=before.program,
                            fingerprint=before.fingerprint,
                        )
                    self.asked = before  # the next reload tries it again
                    break
        self._tell()

    async def scale(self, replicas: int, drain_s: float) -> None:
        """Have so many engines from now on; those that do not run are the first to go."""
        async with self._rolling:
            at_work = lc.SERVING | _UNDER_WAY
            running = any(each.lifecycle.state in at_work for each in self.instances)
            self.order = replace(self.order, replicas=replicas)
            for extra in self._working_first()[replicas:]:
                await self._dismiss(extra, drain_s, f"scaled to {replicas}")
            before = len(self._members)
            self.fill()
            for each in self.instances[before:]:
                if running:
                    each.post(lc.Start(f"scaled to {replicas}"))
        self._tell()

    async def leave(self, drain_s: float, why: str) -> None:
        """Drain, stop and forget all engines: the model is not served any more."""
        async with self._rolling:
            for each in self.instances:
                each.post(lc.Stop(drain_s, "stay", why))
            for each in self.instances:
                await self._dismiss(each, drain_s, why)

    def _working_first(self) -> list[Instance]:
        return sorted(self.instances, key=lambda each: each.lifecycle.state in AT_REST)

    async def _replace(self, old: Instance, drain_s: float, why: str, same: bool) -> bool:
        """Put a new engine in the place of `old`; False where it did not come up."""
        state = old.lifecycle.state
        if state in lc.SERVING and self._has_room(self.order.plan):
            return await self._replace_first(old, drain_s, why)
        before, running = old.lifecycle.generation, state not in AT_REST | {S.SLEEPING}
        if same:
            old.post(lc.Stop(drain_s, "restart" if running else "stay", why))
            new = old
        else:
            await self._dismiss(old, drain_s, why, tell=False)
            new = self.hire(old.name, self._generations[old.name])
            self._tell()
            if running:
                new.post(lc.Start(why))
        others = [each for each in self.instances if each is not new]
        if running and any(each.lifecycle.state in lc.SERVING for each in others):
            ended = await new.wait_until(
                lambda now: (
                    now.state in AT_REST or (now.generation > before and now.state is S.READY)
                )
            )
            return ended is S.READY
        return True

    async def _replace_first(self, old: Instance, drain_s: float, why: str) -> bool:
        """The new engine is ready before the old one drains."""
        new = self._fresh()
        before = new.lifecycle.generation
        new.post(lc.Start(why))
        ended = await new.wait_until(
            lambda now: now.generation > before and now.state in AT_REST | {S.READY}
        )
        if ended is S.READY:
            self._tell()
            await self._dismiss(old, drain_s, why)
            return True
        if ended is S.FAILED:
            self._tell("model.roll_failed", self.name, why=new.lifecycle.why, engine=new.name)
        await self._dismiss(new, 0, why)
        return False

    def _fresh(self) -> Instance:
        taken = set(self._members)
        at = next(n for n in range(len(taken) + 1) if f"{self.name}-{n}" not in taken)
        name = f"{self.name}-{at}"
        return self.hire(name, self._generations.get(name, 0))

    async def _dismiss(
        self, instance: Instance, drain_s: float, why: str, tell: bool = True
    ) -> None:
        self._going.add(instance.name)
        instance.post(lc.Stop(drain_s, "stay", why))
        await instance.wait_for(AT_REST)
        self._going.discard(instance.name)
        self._generations[instance.name] = instance.lifecycle.generation
        self._members.remove(instance.name)
        await self._crew.remove(instance.name)
        if tell:
            self._tell()
