"""API keys: who may use which models, how much, and how urgently. Pure.

A key is 256 random bits, so its SHA-256 is as good as a slow password hash: there is nothing to
guess it from, and a guess at 256 bits is no likelier to hit a fast hash than a slow one. Only the
hash is kept, sent and compared; the key itself is shown once, when it is made.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_KEYS = 1000  # every key is a label of the gateway's metrics
MAX_PRIORITY = 100
ANONYMOUS = "-"  # who needs no key, where none is asked for
SETTINGS = "settings"  # who has a key of `api_keys`: nameless, all models, no limits
RESERVED = frozenset({ANONYMOUS, SETTINGS})

KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


class KeyLimits(BaseModel):
    """What a key may do; None is no limit.

    `models`: names as clients give them, empty for all. A minute's worth of requests and tokens may
    come at once. `concurrency` counts requests from arrival to answer, those that wait included.
    `expires_at` is in seconds since the epoch. `priority` is the highest that a request of the key
    may ask for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=100)] = ()
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrency: Count | None = None
    expires_at: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    priority: Priority = 0


FULL = KeyLimits(priority=MAX_PRIORITY)


class KeyGrant(KeyLimits):
    """One key by its hash. A revoked one is kept: keys go on being asked for."""

    name: KeyName
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: float
    revoked: bool = False


def hash_of(key: str) -> str:
    """SHA-256 in hex; of any text that may stand in a header."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def bearer(authorization: str | None) -> str | None:
    """The key of an `Authorization` header; None where it carries none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None
