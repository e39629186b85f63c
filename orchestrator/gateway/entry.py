"""Who may come in: asked for by a name that we have, with a key if need be, while there is room."""

from __future__ import annotations

from orchestrator.errors import GatewayBusy
from orchestrator.gateway.connections import Connections
from orchestrator.gateway.crowd import Room
from orchestrator.gateway.doors import Doors
from orchestrator.gateway.engine_pool import EnginePool
from orchestrator.gateway.keyring import Holder, KeyRing


class Entry:
    """See the module."""

    def __init__(
        self, doors: Doors, keys: KeyRing, connections: Connections, pool: EnginePool
    ) -> None:
        self._doors, self._keys = doors, keys
        self._connections, self._pool = connections, pool

    def admit(self, headers: dict[bytes, bytes], address: str) -> Holder:
        """Whose request it is, by its headers and its client's address; raises what keeps it out,
        GatewayBusy where no descriptor is left for another."""
        if self._doors.closed:
            self._doors.check(_text(headers.get(b"host")))
        keys = self._keys
        holder = keys.identify(given_key(headers) if keys.required else None, address)
        if self._connections.room(self._pool.count) is Room.NONE_TO_SPARE:
            told = "the gateway has no file descriptors left for another request; try again"
            raise GatewayBusy(told)
        return holder


def given_key(headers: dict[bytes, bytes]) -> str | None:
    """What a request gives as its key, as an authorization; Anthropic's clients have a header."""
    own, said = headers.get(b"x-api-key"), headers.get(b"authorization")
    if own is not None and (said is None or not said.lower().startswith(b"bearer ")):
        said = b"Bearer " + own
    return _text(said)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
