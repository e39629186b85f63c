"""A replica as the simulation sees it: a prefix cache, a prefill line, and a batch that decodes.

Prefill is one at a time and costs time for each token that the cache does not hold; decoding shares
the batch, and each step gets slower the more run at once. The cache holds whole blocks of prompts
by their chains, and forgets what was not used for the longest time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 64  # tokens

Chain = tuple[int, ...]
"""A prompt as numbers of its blocks: equal numbers from the start are an equal prefix."""


@dataclass(frozen=True)
class Engine:
    """What a replica can do. Roughly an 8B model in 16 bits on one card of 24 GB."""

    prefill_tokens_s: float = 6000.0
    step_s: float = 0.025
    step_s_each: float = 0.0005  # more for each request of the batch
    cache_tokens: int = 60_000
    places: int = 32


class PrefixCache:
    """Blocks by their whole prefix; the least recently used leave first."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens // BLOCK
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def take(self, chain: Sequence[int]) -> int:
        """How many blocks from the start are held; then all of them are."""
        held = 0
        for block in chain:
            if block not in self._blocks:
                break
            held += 1
        for block in reversed(chain):  # the start was used last: leaves go first
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return held


class SimReplica:
    """One engine: when it is free to prefill, and who is in flight."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = PrefixCache(engine.cache_tokens)
        self.in_flight = 0
        self.free_at = 0.0
        self.served = 0

    def serve(self, chain: Sequence[int], new_tokens: int, now: float) -> tuple[float, float, int]:
        """Seconds at which the first token and the end come, and the blocks that were held."""
        held = self.cache.take(chain)
        missing = (len(chain) - held) * BLOCK + 1
        self.free_at = max(self.free_at, now) + missing / self.engine.prefill_tokens_s
        step = self.engine.step_s + self.engine.step_s_each * self.in_flight
        self.served += 1
        return self.free_at + step, self.free_at + step * new_tokens, held
