"""The base of every shared noun."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Frozen, printable as JSON, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
