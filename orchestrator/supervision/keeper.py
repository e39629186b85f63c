"""Keeps the right models in memory: reads demand and memory, asks `schedule`, carries it out.

It also admits every launch: one at a time, and only when the machine really has the room, so that
a load waits until the memory of what ended before is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import InsufficientMemory
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.demand import Demand
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.ledger import Bytes, Ledger, Room, planned
from orchestrator.supervision.orders import ReadRooms
from orchestrator.supervision.pool import Pool
from orchestrator.supervision.schedule import (
    Load,
    Order,
    Phase,
    Refuse,
    Sleep,
    Unload,
    View,
    Wait,
    schedule,
)
from orchestrator.supervision.workloads import EngineWorkload

_log = logging.getLogger("engineroom.keeper")
_TICK_S = 1.0
_POLL_S = 0.1
_MEASURE_S = 5.0
_EVICT_DRAIN_S = 600.0  # whoever makes room for others finishes what it has begun
_SETTLED_S = 3.0  # memory that has not grown for so long is not coming back
_GROWS = 8 << 20
_REFUSAL_S = 5.0  # a refused model is looked at again after this


@dataclass
class _Seen:
    """What the keeper remembers of one model, on its own clock."""

    served: int = 0
    used_at: float = 0.0
    waiting_since: float | None = None
    serving_since: float | None = None
    load_began: float | None = None
    load_s: float = 1.0
    said: str = ""


class Keeper:
    """One per supervisor; one task runs `run`."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        ledger: Ledger,
        rooms: ReadRooms,
        demand: Callable[[str], Demand],
        taken: Callable[[Instance, Mapping[str, Room]], Bytes],
        sampled: Callable[[Instance, Bytes], None],
        event: Callable[..., object],
        tell: Callable[[], None],
        drain_s: float,
        memory_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        left: Callable[[str, str], None] = lambda model, reason: None,
    ) -> None:
        """`left` is told of each model that is made to leave, and of the reason in one word."""
        self._left = left
        self._pools, self.ledger, self._rooms = pools, ledger, rooms
        self._demand, self._taken, self._sampled = demand, taken, sampled
        self._event, self._tell = event, tell
        self._drain_s, self._wait_s, self._clock = drain_s, memory_wait_s, clock
        self._seen: dict[str, _Seen] = {}
        self._gate = asyncio.Lock()
        self._poke = asyncio.Event()
        self._latest: Mapping[str, Room] = {}
        self._measure_at = 0.0

    def poke(self) -> None:
        """Something changed: look soon."""
        self._poke.set()

    async def run(self) -> None:
        """Look after every poke and every second, until cancelled."""
        while True:
            self._poke.clear()
            try:
                pause = await self.look()
            except Exception:  # noqa: BLE001 - whatever it is, models must go on being kept
                _log.exception("the models could not be looked at; again soon")
                pause = _TICK_S
            try:
                async with asyncio.timeout(min(_TICK_S, pause)):
                    await self._poke.wait()
                    await asyncio.sleep(_POLL_S)  # many changes at once are looked at once
            except TimeoutError:
                continue

    def account(self) -> dict[str, Any]:
        """The ledger for display: bytes by device, by engine."""
        spare = self.ledger.spare(self._latest)
        devices = {
            device: {"total": room.total, "free": room.free, "spare": spare[device],
                     "budget": self.ledger.budget.get(device)}
            for device, room in self._latest.items()
        }  # fmt: skip
        claims = {
            name: {"planned": dict(claim.planned), "measured": dict(claim.measured)}
            for name, claim in self.ledger.claims.items()
        }
        return {"devices": devices, "claims": claims}

    @property
    def rooms(self) -> Mapping[str, Room]:
        """Every device by the latest reading."""
        return self._latest

    def lacks(self, need: Bytes) -> str | None:
        """Why `need` does not fit beside all that run now, by the latest reading."""
        return self.ledger.shortage("", need, self._latest)

    def has_room(self, need: Bytes) -> bool:
        """Whether one more engine fits beside all that run now, by the latest reading."""
        spare = self.ledger.spare(self._latest)
        return all(size <= spare.get(device, 0) for device, size in need.items())

    async def look(self) -> float:
        """Read, decide, carry out. Returns after how many seconds it is worth to look again."""
        await self._read()
        await self._measure()
        views = [self._view(pool) for pool in self._pools.values()]
        orders = schedule(views, self.ledger.spare(self._latest))
        waited = [order for order in orders if isinstance(order, Wait)]
        for order in orders:
            self._carry_out(order)
        for name in self._pools.keys() - {order.name for order in waited}:
            self._say(name, "")
        return min((order.seconds or _TICK_S for order in waited), default=_TICK_S)

    async def _read(self, explain: bool = False) -> None:
        """A device whose driver does not answer is as it was last."""
        self._latest = {**self._latest, **await self._rooms(explain)}

    # --- admission --------------------------------------------------------------------------------

    async def admit(self, instance: Instance) -> None:
        """Return when there is room for a launch; its memory is then promised.

        Raises InsufficientMemory with the numbers, once memory has stopped growing.
        """
        workload = instance.workload
        if not isinstance(workload, EngineWorkload):
            return
        need = planned(workload.plan.estimate)
        async with self._gate:
            if instance.running is None:  # else it wakes up, and has a part of it
                self.ledger.ended(instance.name)
            try:
                await self._wait_for_room(instance.name, need)
            except BaseException:
                self.ledger.release(instance.name)
                raise

    async def _wait_for_room(self, name: str, need: Bytes) -> None:
        self.ledger.claim(name, need)
        began = grew = self._clock()
        best: dict[str, int] = {}
        while True:
            await self._read(True)
            short = self.ledger.shortage(name, need, self._latest)
            if short is None:
                return
            free = self.ledger.spare(self._latest)
            if any(free.get(device, 0) > best.get(device, 0) + _GROWS for device in need):
                best, grew = free, self._clock()
            now = self._clock()
            if now - began > self._wait_s or now - grew > min(_SETTLED_S, self._wait_s):
                raise InsufficientMemory(short)
            if now - began < _POLL_S:
                self._event("model.waits", name, why=f"waits for memory: {short}")
            await asyncio.sleep(_POLL_S)

    def ended(self, instance: Instance) -> None:
        """Its process is gone: what it held is free, or about to be."""
        if instance.lifecycle.state in {lc.State.STOPPED, lc.State.FAILED}:
            self.ledger.release(instance.name)
        else:
            self.ledger.ended(instance.name)
        self.poke()

    def slept(self, instance: Instance, level: int) -> None:
        """It gave its memory back, but for its weights in RAM at level 1."""
        workload = instance.workload
        if isinstance(workload, EngineWorkload):
            kept = workload.plan.model.weight_bytes if level == 1 else 0
            self.ledger.claim(instance.name, {"ram": kept})
        self.poke()

    def adopted(self, instance: Instance) -> None:
        """An engine that runs already has its claim."""
        if isinstance(instance.workload, EngineWorkload):
            self.ledger.claim(instance.name, planned(instance.workload.plan.estimate))

    # --- looking ----------------------------------------------------------------------------------

    async def _measure(self) -> None:
        """Note what every engine holds; now and then, for it reads all processes."""
        if self._clock() < self._measure_at:
            return
        self._measure_at = self._clock() + _MEASURE_S
        running = [e for pool in self._pools.values() for e in pool.instances if e.running]
        for each in running:
            found = await asyncio.to_thread(self._taken, each, self._latest)
            self.ledger.measure(each.name, found)
            self._sampled(each, found)

    def _view(self, pool: Pool) -> View:
        now, demand = self._clock(), self._demand(pool.name)
        seen = self._seen.setdefault(pool.name, _Seen(used_at=now))
        if demand.served != seen.served or demand.waiting or demand.in_flight:
            seen.served, seen.used_at = demand.served, now
        if not demand.waiting:
            seen.waiting_since = None
        elif seen.waiting_since is None:
            seen.waiting_since = now
        phase = pool.phase
        self._time_load(pool, seen, phase, now)
        held = [self.ledger.claims.get(each.name) for each in pool.instances]
        keeping = pool.order.keeping
        if demand.keep_alive is not None:
            ttl = None if demand.keep_alive < 0 else demand.keep_alive
            keeping = replace(keeping, ttl_s=ttl)
        return View(
            name=pool.name,
            phase=phase,
            keeping=keeping,
            need=pool.need,
            held=_sum([claim.held for claim in held if claim]),
            wanted=pool.wanted and phase in {Phase.ABSENT, Phase.ASLEEP},
            waiting=demand.waiting,
            waited_s=now - seen.waiting_since if seen.waiting_since is not None else 0.0,
            in_flight=demand.in_flight + pool.changing,
            asleep=pool.plan.model.weight_bytes * pool.order.replicas,
            idle_s=now - seen.used_at,
            served_s=now - seen.serving_since if seen.serving_since is not None else 0.0,
            load_s=seen.load_s,
        )

    @staticmethod
    def _time_load(pool: Pool, seen: _Seen, phase: Phase, now: float) -> None:
        """How long loads take, and since when the model serves."""
        if phase is Phase.LOADING and seen.load_began is None:
            seen.load_began = now
        elif phase is Phase.SERVING:
            if seen.serving_since is None:
                seen.serving_since = seen.used_at = now
                if seen.load_began is not None:
                    seen.load_s = max(0.1, now - seen.load_began)
            pool.wanted = False
        if phase is not Phase.SERVING:
            seen.serving_since = None
        if phase is not Phase.LOADING:
            seen.load_began = None

    def _carry_out(self, order: Order) -> None:
        pool = self._pools[order.name]
        match order:
            case Load():
                self._event("model.load", order.name, why=order.why)
                pool.load(order.why)
            case Unload():
                self._event("model.unload", order.name, why=order.why)
                self._left(order.name, order.reason)
                pool.unload(max(self._drain_s, _EVICT_DRAIN_S), order.why)
            case Sleep():
                self._event("model.sleep", order.name, why=order.why, level=order.level)
                self._left(order.name, "asleep")
                pool.sleep(order.level, self._drain_s, order.why)
            case Wait():
                self._say(order.name, order.why)
            case Refuse():
                self._refuse(pool, order.why)

    def _refuse(self, pool: Pool, why: str) -> None:
        if pool.why != why or self._clock() > pool.refused_until:
            self._event("model.refused", pool.name, why=why)
        pool.refuse(why, self._clock() + _REFUSAL_S)
        asyncio.get_running_loop().call_later(_REFUSAL_S + _POLL_S, self._tell)
        self._tell()

    def _say(self, name: str, why: str) -> None:
        """Tell once what a model waits for."""
        seen = self._seen.setdefault(name, _Seen(used_at=self._clock()))
        if why.split(",")[0] == seen.said.split(",")[0]:
            return
        seen.said = why
        if why:
            self._event("model.waits", name, why=why)
        pool = self._pools[name]
        if self._clock() > pool.refused_until:
            pool.why = why
            self._tell()


def _sum(parts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for device, size in part.items():
            total[device] = total.get(device, 0) + size
    return total
