"""What one worker tells the others of a replica. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Verdict(BaseModel):
    """What became of a request on a replica, by its id and generation.

    `broke`: the connection, for which the replica rests. `body` is the fingerprint of what may have
    brought it about, or is cleared.
    """

    model_config = ConfigDict(frozen=True)

    replica: tuple[str, int]
    failed: bool
    broke: bool = False
    body: str | None = None
