"""Two workloads, seeded: many questions about shared documents, and conversations of many turns."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from bench.routing.replicas import BLOCK, Chain


@dataclass(frozen=True)
class Turn:
    """One request: its prompt, its answer's length in tokens, and its affinity as in `asking`.

    `thinks` is the pause before the next turn, in seconds.
    """

    chain: Chain
    new_tokens: int
    affinity: bytes
    thinks: float


def _blocks(*what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "big")


def _part(name: object, tokens: int) -> Chain:
    return tuple(_blocks(name, index) for index in range(max(1, tokens // BLOCK)))


def _affinity(*what: object) -> bytes:
    return _blocks(*what).to_bytes(8, "big")


class SharedPrefix:
    """Agents: `prefixes` long system prompts, some far more often than others; a question each."""

    name = "shared prefix"

    def __init__(self, seed: int, prefixes: int) -> None:
        self._draw = random.Random(seed)
        self._names = range(prefixes)
        self._weights = [1 / (rank + 1) ** 0.8 for rank in self._names]
        self._count = 0

    def chat(self) -> Iterator[Turn]:
        """One request."""
        self._count += 1
        which = self._draw.choices(self._names, self._weights)[0]
        prefix = _part(("system", which), 3072)
        question = _part(("question", self._count), self._draw.randint(64, 512))
        affinity = _affinity("system", which) + _affinity("question", self._count)
        yield Turn(prefix + question, self._draw.randint(32, 160), affinity, 0.0)


class ManyTurns:
    """People: one system prompt for all, and conversations that grow by each answer."""

    name = "many turns"

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._count = 0

    def chat(self) -> Iterator[Turn]:
        """The turns of one conversation."""
        self._count += 1
        chat, draw = self._count, self._draw
        chain = _part("system", 512)
        for turn in range(draw.randint(2, 9)):
            chain += _part((chat, turn, "question"), draw.randint(64, 768))
            new = draw.randint(64, 320)
            affinity = _affinity("system") + _affinity("chat", chat)
            yield Turn(chain, new, affinity, draw.expovariate(1 / 12))
            chain += _part((chat, turn, "answer"), new)
