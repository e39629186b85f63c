"""Discrete events: chats arrive by chance, each turn is routed by the gateway's own policies."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from bench.routing.replicas import Engine, SimReplica
from bench.routing.workloads import Turn
from orchestrator.gateway.policies.base import Policy


class Workload(Protocol):
    """Where chats come from."""

    name: str

    def chat(self) -> Iterator[Turn]:
        """The turns of the next chat."""


@dataclass(frozen=True)
class Outcome:
    """What clients and engines saw: seconds, shares, and the busiest replica over the mean."""

    requests: int
    ttft_p50: float
    ttft_p99: float
    hit_rate: float
    imbalance: float


class SimFleet:
    """The replicas as a policy sees them."""

    def __init__(self, size: int, engine: Engine) -> None:
        self.replicas = [SimReplica(engine) for _ in range(size)]
        self.size, self.total = size, 0
        self._places = engine.places

    def load(self, index: int) -> int:
        """Requests in flight on one."""
        return self.replicas[index].in_flight

    def open(self, index: int) -> bool:
        """Whether the plan's concurrency leaves a place."""
        return self.replicas[index].in_flight < self._places


class Simulation:
    """One run: `chats_s` chats a second on average, until `requests` were answered.

    The first third warms the caches and is not counted.
    """

    def __init__(
        self,
        workload: Workload,
        policy: Policy,
        size: int,
        chats_s: float,
        requests: int,
        seed: int,
        engine: Engine | None = None,
    ) -> None:
        self._workload, self._policy, self._rate = workload, policy, chats_s
        self._fleet = SimFleet(size, engine or Engine())
        self._requests, self._draw = requests, random.Random(seed)
        self._events: list[tuple[float, int, int, Iterator[Turn], float]] = []
        self._order = count()
        self._waiting: deque[tuple[float, Turn, Iterator[Turn]]] = deque()
        self._ttft: list[float] = []
        self._held = self._blocks = self._answered = 0
        self._loads = [0.0] * size

    def run(self) -> Outcome:
        """All of it; the same arguments give the same outcome."""
        self._at(self._draw.expovariate(self._rate), -1, self._workload.chat())
        while self._answered < self._requests:
            now, _, replica, chat, thinks = heapq.heappop(self._events)
            if replica >= 0:
                self._leave(replica, chat, thinks, now)
                continue
            turn = next(chat, None)
            if thinks < 0:  # a chat's first turn brings the next chat
                self._at(now + self._draw.expovariate(self._rate), -1, self._workload.chat())
            if turn is not None and not self._begin(now, turn, chat, now):
                self._waiting.append((now, turn, chat))
        self._ttft.sort()
        mean = sum(self._loads) / len(self._loads)
        return Outcome(
            requests=len(self._ttft),
            ttft_p50=self._ttft[len(self._ttft) // 2],
            ttft_p99=self._ttft[len(self._ttft) * 99 // 100],
            hit_rate=self._held / self._blocks,
            imbalance=max(self._loads) / mean,
        )

    def _at(self, when: float, replica: int, chat: Iterator[Turn], thinks: float = -1.0) -> None:
        heapq.heappush(self._events, (when, next(self._order), replica, chat, thinks))

    def _begin(self, arrived: float, turn: Turn, chat: Iterator[Turn], now: float) -> bool:
        index = self._policy.choose(self._fleet, turn.affinity)
        if index is None:
            return False
        replica = self._fleet.replicas[index]
        replica.in_flight += 1
        self._fleet.total += 1
        first, end, held = replica.serve(turn.chain, turn.new_tokens, now)
        self._at(end, index, chat, turn.thinks)
        self._answered += 1
        if self._answered * 3 > self._requests:
            self._ttft.append(first - arrived)
            self._held += held
            self._blocks += len(turn.chain)
            self._loads[index] += end - now
        return True

    def _leave(self, index: int, chat: Iterator[Turn], thinks: float, now: float) -> None:
        self._fleet.replicas[index].in_flight -= 1
        self._fleet.total -= 1
        self._at(now + max(0.0, thinks), -1, chat, max(0.0, thinks))
        while self._waiting and self._begin(*self._waiting[0], now):
            self._waiting.popleft()
