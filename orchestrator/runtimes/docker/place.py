"""The network that engines live in, and how it is reached from here.

It is internal: nothing of it can be reached from other networks, and nothing in it reaches out. A
supervisor on the machine itself talks to a container's address; one in a container joins the
network, and calls containers by their names.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine_launchers.base import Listen
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.docker.connection import Connection, Refused
from orchestrator.runtimes.docker.labels import INSTALLATION
from orchestrator.runtimes.docker.mounts import own_container

_MOUNTS = Path("/proc/self/mountinfo")


class Place:
    """One internal network. `name` is None for one that this installation makes for itself."""

    def __init__(self, connection: Connection, installation: str, name: str | None) -> None:
        self._connection, self._installation = connection, installation
        self.network = name or f"engineroom-{installation}"
        self.podman = self._settled = False
        self.memory = 0
        self.own: Mapping[str, Any] | None = None
        """What the engine says of the container that we are in; None outside of any."""

        self._settling = asyncio.Lock()

    async def settle(self) -> None:
        """Have the network, and a way into it. Raises LaunchFailed, Away, Refused."""
        async with self._settling:
            await self._look()
            self._settled = True
            network = await self._made()
            if not network.get("Internal"):
                raise LaunchFailed(
                    f"docker_network {self.network} is not internal: engines would be open to "
                    "every container: make one with `docker network create --internal`"
                )
            if self.own is not None:
                await self._join(self.own)
            elif not self.podman and not _is_here(network):
                raise LaunchFailed(
                    f"containers of the Docker Engine at {self._connection.where} cannot be "
                    "reached from here, it runs on another machine or in a machine of its own: "
                    "run Engine Room in a container of it"
                )

    async def _look(self) -> None:
        version = await self._connection.call(lambda client: client.version())
        parts = [str(each.get("Name", "")) for each in version.get("Components") or []]
        self.podman = any("podman" in each.lower() for each in parts)
        info = await self._connection.call(lambda client: client.info())
        if info.get("OSType", "linux") != "linux":
            raise LaunchFailed("the Docker Engine runs Windows containers: switch it to Linux's")
        self.memory = int(info.get("MemTotal") or 0)
        self.own = await self._container()

    async def _container(self) -> Mapping[str, Any] | None:
        """The container that this process runs in, where it is one of this engine's."""
        with suppress(OSError):
            if id := own_container(_MOUNTS.read_text()):
                try:
                    found: Mapping[str, Any] = await self._connection.call(
                        lambda client: client.inspect_container(id)
                    )
                except Refused as error:
                    if not error.missing:
                        raise
                else:
                    return found
        return None

    async def _made(self) -> Mapping[str, Any]:
        try:
            return await self._network()
        except Refused as error:
            if not error.missing:
                raise
        labels = {INSTALLATION: self._installation}
        await self._connection.call(
            lambda client: client.create_network(
                self.network, driver="bridge", internal=True, labels=labels
            )
        )
        return await self._network()

    async def _network(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._connection.call(
            lambda client: client.inspect_network(self.network)
        )
        return found

    async def _join(self, own: Mapping[str, Any]) -> None:
        if self.network not in own["NetworkSettings"]["Networks"]:
            await self._connection.call(
                lambda client: client.connect_container_to_network(own["Id"], self.network)
            )

    def address(self, container: Mapping[str, Any], port: int) -> Listen:
        """Where a running container is reached. Raises LaunchFailed where it has no address."""
        if self.own is not None:
            return Listen(host=str(container["Name"]).removeprefix("/"), port=port)
        known = container["NetworkSettings"]["Networks"].get(self.network) or {}
        host = known.get("IPAddress") or known.get("GlobalIPv6Address")
        if not host:
            raise LaunchFailed(f"its container has no address in network {self.network}")
        return Listen(host=host, port=port)

    async def leave(self) -> None:
        """Remove a network of our own making that nobody uses any more."""
        if not self._settled:  # nothing was ever asked for here
            return
        try:
            network = await self._network()
            mine = (network.get("Labels") or {}).get(INSTALLATION) == self._installation
            own = {self.own["Id"]} if self.own is not None else set()
            members = set(network.get("Containers") or {})
            if mine and members <= own:
                await self._connection.call(lambda client: _remove(client, self.network, members))
        except LaunchFailed:  # gone, in use again, or out of reach: the next server uses it
            return


def _remove(client: Any, network: str, members: set[str]) -> None:
    for id in members:
        client.disconnect_container_from_network(id, network)
    client.remove_network(network)


def _is_here(network: Mapping[str, Any]) -> bool:
    """Whether the network's bridge is one of this machine: then its address can be bound."""
    pools = (network.get("IPAM") or {}).get("Config") or []
    hosts = [str(each["Gateway"]).split("/")[0] for each in pools if each.get("Gateway")]
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
            return True
    return not hosts
