"""Prefix affinity with bounded load: consistent hashing with bounded loads (CHWBL). Pure.

After Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016): a request
walks the ring from its hash to the first replica whose load stays within `BOUND` times the mean.
The same prefix meets the same replica, whose cache knows it, until that one has its fair share and
a quarter; then the next on the ring, always the same one. A replica that comes or goes moves only
its own part of the ring.

Two hashes make an affinity: what many share (a long system prompt), and what is this conversation's
own. The first one's walk of the ring gives a group its replicas: as many as its share of the
requests asks for, so that a rare prompt is cached once and one that everybody uses everywhere. The
second one says which of these is home.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from orchestrator.gateway.policies.base import Fleet, Policy

BOUND = 1.25
FLOOR = 2  # requests at once that no bound forbids: a batch of two costs hardly more than one
HALF = 8  # bytes of each of the two hashes
_POINTS = 64
_WALKS = 512
_LATEST = 2048
_EARLY = 64


class Ring:
    """Replicas by their ids on a circle of 64-bit numbers, each at many points."""

    def __init__(self, ids: Sequence[str], points: int = _POINTS) -> None:
        placed = sorted(
            (_number(f"{name}\0{point}".encode()), index)
            for index, name in enumerate(ids)
            for point in range(points)
        )
        self._at = [at for at, _ in placed]
        self._index = [index for _, index in placed]
        self.size = len(ids)

    def walk(self, affinity: bytes) -> Iterator[int]:
        """Every replica once, in the order in which this affinity wants them."""
        seen: set[int] = set()
        start, points = bisect_right(self._at, _number(affinity)), len(self._index)
        for step in range(points):
            index = self._index[(start + step) % points]
            if index not in seen:
                yield index
                seen.add(index)
                if len(seen) == self.size:
                    return


class _Walk:
    """A walk that is remembered as far as it was gone."""

    def __init__(self, ring: Ring, affinity: bytes) -> None:
        self._rest, self._gone = ring.walk(affinity), list[int]()

    def first(self, count: int) -> Sequence[int]:
        while len(self._gone) < count:
            self._gone.append(next(self._rest))
        return self._gone[:count]

    def after(self, count: int) -> Iterator[int]:
        while True:
            if count == len(self._gone):
                following = next(self._rest, None)
                if following is None:
                    return
                self._gone.append(following)
            yield self._gone[count]
            count += 1


class _Shares:
    """How much of the latest requests each group is: this window, and what it leaves of the last.

    `early`: with fewer requests than that nothing is known yet.
    """

    def __init__(self, window: int, early: int) -> None:
        self._window, self._early = window, early
        self._now, self._last = Counter[bytes](), Counter[bytes]()
        self._seen = 0

    def seen(self, group: bytes) -> float:
        """The share of `group`, this request included."""
        if self._seen == self._window:
            self._now, self._last, self._seen = Counter(), self._now, 0
        self._seen += 1
        self._now[group] += 1
        if not self._last:
            return self._now[group] / max(self._seen, self._early)
        rest = 1 - self._seen / self._window
        return (self._now[group] + rest * self._last[group]) / self._window


class Prefix:
    """What has no affinity is chosen by `otherwise`."""

    def __init__(self, ids: Sequence[str], otherwise: Policy) -> None:
        self._ring, self._otherwise = Ring(ids), otherwise
        self._shares = _Shares(max(_LATEST, 8 * len(ids)), max(_EARLY, 2 * len(ids)))
        self._walks: dict[bytes, _Walk] = {}

    def choose(self, fleet: Fleet, affinity: bytes) -> int | None:
        """The first on the walk within the bound; where none is, the first that is open."""
        if not affinity or fleet.size < 2:
            return self._otherwise.choose(fleet, affinity)
        most = max(FLOOR, math.ceil(BOUND * (fleet.total + 1) / fleet.size))
        fallback = None
        for index in self._walk(affinity):
            if not fleet.open(index):
                continue
            if fleet.load(index) < most:
                return index
            if fallback is None:
                fallback = index
        return fallback

    def _walk(self, affinity: bytes) -> Iterator[int]:
        """Home first, then the rest of the group's replicas, then all others."""
        group, own = affinity[:HALF], affinity[HALF:] or affinity
        wanted = math.ceil(BOUND * self._ring.size * self._shares.seen(group))
        if wanted * 2 > self._ring.size and own != group:  # everybody's: the group says nothing
            return self._ring.walk(own)
        walk = self._walks.pop(group, None) or _Walk(self._ring, group)
        self._walks[group] = walk  # the latest last
        if len(self._walks) > _WALKS:
            del self._walks[next(iter(self._walks))]
        if wanted == 1 or own == group:
            return walk.after(0)
        first = walk.first(wanted)
        home = _jump(_number(own), wanted)
        return chain(first[home:], first[:home], walk.after(wanted))


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _jump(key: int, count: int) -> int:
    """Jump consistent hash (Lamping and Veach, 2014): one of `count`; with one more few move."""
    at, following = 0, 0
    while following < count:
        at = following
        key = (key * 2862933555777941757 + 1) % (1 << 64)
        following = int((at + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return at
