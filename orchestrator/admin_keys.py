"""API keys over the control API: made, shown, changed, revoked. The gateways are told at once."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends as Guard
from pydantic import Field

from orchestrator.access import KeyGrant, KeyLimits, KeyName
from orchestrator.control import KeyTable
from orchestrator.keyfile import KeyFile
from orchestrator.supervision.gateways import GatewayLink
from orchestrator.supervision.store import Store


class KeyWish(KeyLimits):
    """A key to be made."""

    name: KeyName


class KeyView(KeyLimits):
    """A key without its hash. `state` is active, expired or revoked."""

    name: str
    created_at: float
    state: str


class KeyMade(KeyView):
    """A new key; `key` is shown this once."""

    key: Annotated[str, Field(description="The secret: keep it, it cannot be shown again.")]


def view(grant: KeyGrant, now: float) -> dict[str, Any]:
    """What is shown of a key; `now` in seconds since the epoch."""
    expired = grant.expires_at is not None and now >= grant.expires_at
    state = "revoked" if grant.revoked else "expired" if expired else "active"
    return {**grant.model_dump(exclude={"hash", "revoked"}), "state": state}


def add_keys(
    app: FastAPI, file: KeyFile, link: GatewayLink, store: Store, guard: list[Guard]
) -> None:
    """Add the paths under /admin/keys, and tell the gateways what keys there are."""
    keys = APIRouter(prefix="/admin/keys", dependencies=guard, tags=["keys"])
    one = asyncio.Lock()  # one change after the other, so that the file is what the answer says

    def publish() -> None:
        link.publish_keys(KeyTable(keys=file.all()))

    @keys.get("")
    async def listed() -> dict[str, list[KeyView]]:
        """Every key, revoked ones too; never the secret."""
        now = time.time()
        return {"keys": [KeyView(**view(each, now)) for each in file.all()]}

    @keys.get("/{name}")
    async def one_key(name: str) -> KeyView:
        """One key."""
        return KeyView(**view(file.get(name), time.time()))

    @keys.post("", status_code=201)
    async def create(wish: KeyWish) -> KeyMade:
        """Make a key. From the first one on, the gateway serves nobody without a key."""
        async with one:
            limits = wish.model_dump(exclude={"name"})
            made, secret = await asyncio.to_thread(file.create, wish.name, limits)
            publish()
        store.add_event("key.created", wish.name)
        return KeyMade(**view(made, time.time()), key=secret)

    @keys.patch("/{name}")
    async def change(name: str, limits: KeyLimits) -> KeyView:
        """Change the limits that the body names; null removes one. In force at once."""
        said = limits.model_dump(include=limits.model_fields_set)
        async with one:
            changed = await asyncio.to_thread(file.change, name, said)
            publish()
        store.add_event("key.changed", name, changed=sorted(said))
        return KeyView(**view(changed, time.time()))

    @keys.delete("/{name}")
    async def revoke(name: str) -> KeyView:
        """Revoke a key: no new request passes; those under way end as they are."""
        async with one:
            revoked = await asyncio.to_thread(file.revoke, name)
            publish()
        store.add_event("key.revoked", name)
        return KeyView(**view(revoked, time.time()))

    publish()
    app.include_router(keys)
