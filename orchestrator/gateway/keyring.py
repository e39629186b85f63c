"""The API keys as the gateway uses them: who asks, may they, and what have they used. Pure.

A key is looked up by its hash, and the hash compared once more in constant time; a wrong key is
compared too, with a hash that nothing has. What a lookup's time could tell is about hashes of
guesses, which say nothing about the key.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

from orchestrator.access import ANONYMOUS, FULL, SETTINGS, KeyGrant, KeyLimits, bearer, hash_of
from orchestrator.errors import (
    KeyExpired,
    RequestError,
    TooManyAtOnce,
    TooManyFailures,
    TooManyRequests,
    TooManyTokens,
    Unauthorized,
    UnknownModel,
)
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.books import Books, OwnBooks
from orchestrator.gateway.buckets import Bucket

_NOBODY = hash_of("")
_FAILURES_PER_MINUTE = 60
_MAX_ADDRESSES = 10_000


class Meter(Protocol):
    """Where usage is counted, by the key's name."""

    def known(self, keys: Iterable[str]) -> None:
        """These are all keys there are."""

    def asked(self, key: str) -> None:
        """A request of the key arrived."""

    def refused(self, key: str, reason: str) -> None:
        """It was refused for one of the key's own limits; `reason` is the error's code."""

    def used(self, key: str, prompt: int, completion: int) -> None:
        """Tokens that the engine read and wrote for it."""


class Holder:
    """One key and what it has under way. Lives on when the key's limits change."""

    def __init__(self, name: str, limits: KeyLimits, books: Books | None = None) -> None:
        self.name, self.limits, self.books = name, limits, books or OwnBooks()
        self.under_way = self.books.count("key", name)
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None

    def may_use(self, name: str, model: str, adapter: str | None) -> bool:
        """Whether a name is on the list; a model's own name stands for its aliases, not adapters.

        `name` is what the client said, `model` the one it stands for.
        """
        models = self.limits.models
        return not models or name in models or (adapter is None and model in models)

    def limit(self, limits: KeyLimits, now: float) -> None:
        """Take new limits; what was used stays used."""
        self.limits = limits
        with self.books:
            self.requests = self._bucket("rpm", self.requests, limits.requests_per_minute, now)
            self.tokens = self._bucket("tpm", self.tokens, limits.tokens_per_minute, now)

    def _bucket(
        self, kind: str, old: Bucket | None, per_minute: int | None, now: float
    ) -> Bucket | None:
        if per_minute is None:
            return None
        if old is not None:
            return old.resized(per_minute, now)
        return Bucket(per_minute, self.books.purse(kind, self.name))


class Permit:
    """One admitted request of a key. Close it once, with the tokens that it really took."""

    __slots__ = ("_clock", "_holder", "_meter", "_open", "_tokens")

    def __init__(
        self, holder: Holder, tokens: int, meter: Meter, clock: Callable[[], float]
    ) -> None:
        self._holder, self._tokens, self._meter = holder, tokens, meter
        self._clock, self._open = clock, True

    def close(self, prompt: int = 0, completion: int = 0) -> None:
        """Give the place back, and put the estimate right; 0 where no engine did anything."""
        if not self._open:
            return
        self._open = False
        holder = self._holder
        holder.under_way.own -= 1
        if holder.tokens is not None:
            with holder.books:
                holder.tokens.take(prompt + completion - self._tokens, self._clock())
        if prompt or completion:
            self._meter.used(holder.name, prompt, completion)

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


class KeyRing:
    """All keys. `clock` is monotonic seconds, `wall` seconds since the epoch."""

    def __init__(
        self,
        hashes: Iterable[str],
        meter: Meter,
        clock: Callable[[], float],
        wall: Callable[[], float],
        books: Books | None = None,
    ) -> None:
        self._meter, self._clock, self._wall = meter, clock, wall
        self._books = books or OwnBooks()
        self._fixed = tuple(hashes)
        self._everybody = Holder(ANONYMOUS, FULL)
        self._settings = Holder(SETTINGS, FULL)
        self._holders: dict[str, Holder] = {}
        self._by_hash: dict[str, tuple[str, Holder]] = {}
        self._failures: dict[str, Bucket] = {}
        self._failures_per_minute = max(1, _FAILURES_PER_MINUTE // self._books.workers)
        self.required = False
        self.apply(())

    def apply(self, keys: Iterable[KeyGrant]) -> None:
        """Take the keys as they are now. Once there is any, even a revoked one, all need one."""
        grants, now = tuple(keys), self._clock()
        by_hash = {each: (each, self._settings) for each in self._fixed}
        holders: dict[str, Holder] = {}
        for grant in grants:
            if grant.revoked:
                continue
            holder = self._holders.get(grant.name) or Holder(grant.name, grant, self._books)
            holder.limit(grant, now)
            holders[grant.name] = holder
            by_hash[grant.hash] = (grant.hash, holder)
        self._holders, self._by_hash = holders, by_hash
        self.required = bool(self._fixed or grants)
        nameless = SETTINGS if self._fixed else ANONYMOUS
        self._meter.known([*holders, *([nameless] if self._fixed or not grants else [])])

    def identify(self, authorization: str | None, address: str = "") -> Holder:
        """Whose request this is. Raises Unauthorized, KeyExpired or TooManyFailures."""
        if not self.required:
            return self._everybody
        given = hash_of(bearer(authorization) or "")
        known, holder = self._by_hash.get(given, (_NOBODY, self._everybody))
        same = hmac.compare_digest(given, known)
        if not same or holder is self._everybody:
            self._count_failure(address)
            raise Unauthorized("give a valid API key as `Authorization: Bearer KEY`")
        expires = holder.limits.expires_at
        if expires is not None and self._wall() >= expires:
            self._meter.refused(holder.name, KeyExpired.code)
            raise KeyExpired("this API key has expired; ask for a new one")
        return holder

    def admit(self, holder: Holder, ask: Ask, name: str, adapter: str | None = None) -> Permit:
        """Let a request in, or raise which of its key's limits is in the way. Nothing waits here.

        `name` is the model as the client called it. Raises UnknownModel, TooManyAtOnce,
        TooManyRequests or TooManyTokens.
        """
        self._meter.asked(holder.name)
        with holder.books:
            now = self._clock()
            try:
                self._check(holder, ask, name, adapter, now)
            except RequestError as error:
                self._meter.refused(holder.name, error.code)
                raise
            if holder.requests is not None:
                holder.requests.take(1, now)
            if holder.tokens is not None:
                holder.tokens.take(ask.cost, now)
            holder.under_way.own += 1
        return Permit(holder, ask.cost, self._meter, self._clock)

    def forbidden(self, holder: Holder) -> UnknownModel:
        """The refusal of a model that a key may not use; it is counted."""
        error = UnknownModel("no model of that name is served, see /v1/models", param="model")
        self._meter.asked(holder.name)
        self._meter.refused(holder.name, error.code)
        return error

    def _check(self, holder: Holder, ask: Ask, name: str, adapter: str | None, now: float) -> None:
        if not holder.may_use(name, ask.model, adapter):
            raise UnknownModel("no model of that name is served, see /v1/models", param="model")
        limits, way = holder.limits, holder.under_way
        if limits.concurrency is not None and way.own + way.others >= limits.concurrency:
            raise TooManyAtOnce(
                f"this key may have {limits.concurrency} requests under way and has them",
                retry_after=1,
            )
        if holder.requests is not None and (seconds := holder.requests.wait_for(1, now)):
            raise TooManyRequests(
                f"this key may send {limits.requests_per_minute} requests per minute",
                retry_after=seconds,
            )
        if holder.tokens is not None and (seconds := holder.tokens.wait_for(ask.cost, now)):
            raise TooManyTokens(
                f"this key may use {limits.tokens_per_minute} tokens per minute; this request may "
                f"take {ask.cost}",
                retry_after=seconds,
            )

    def _count_failure(self, address: str) -> None:
        """Raise TooManyFailures for an address that goes on guessing."""
        now = self._clock()
        bucket = self._failures.pop(address, None) or Bucket(self._failures_per_minute)
        self._failures[address] = bucket  # the latest last
        if len(self._failures) > _MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        if seconds := bucket.wait_for(1, now):
            raise TooManyFailures("too many wrong API keys from this address", retry_after=seconds)
        bucket.take(1, now)
