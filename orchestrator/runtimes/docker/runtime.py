"""Engines in containers: starts them, and finds them again."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from engine_launchers.base import LaunchSpec, Listen
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes import remains
from orchestrator.runtimes.base import (
    Availability,
    ContainerHold,
    Handle,
    HandleRecord,
    Tell,
    new_record,
)
from orchestrator.runtimes.docker import pulling
from orchestrator.runtimes.docker.body import body, labels, with_cure
from orchestrator.runtimes.docker.connection import Away, Connection, Refused
from orchestrator.runtimes.docker.handle import ContainerHandle
from orchestrator.runtimes.docker.here import DockerOptions, leader, surroundings, visible
from orchestrator.runtimes.docker.labels import GENERATION, INSTALLATION, PLAN
from orchestrator.runtimes.docker.logs import Follower
from orchestrator.runtimes.docker.place import Place, Unreachable
from orchestrator.runtimes.docker.watcher import Note, Watcher, name_of, remove
from orchestrator.runtimes.shim.output import Output

_log = logging.getLogger("engineroom.docker")
_PORT = 8000
_BACK_S = 30.0  # for an engine that is away to come back, before a launch fails
_START_S = 60.0
_SETTLE_S = 3.0  # for the engine's own process to show, or to fail at once
_LOOK_S = 0.05
_NO_PROGRAM = {126, 127}


class DockerRuntime:
    """Containers of the Docker Engine that `environment` names; `tell` hears what happens to it."""

    def __init__(self, options: DockerOptions, environment: Mapping[str, str], tell: Note) -> None:
        self.options = options
        self._connection = Connection(environment)
        self._place = Place(self._connection, options.installation, options.network)
        self._watcher = Watcher(self._connection, options.installation, tell, options.leftover_s)
        self._followers: dict[str, Follower] = {}

    async def check(self) -> Availability:
        """Usable where the engine answers and its containers can be reached from here.

        What containers left in the folder that are not there any more is removed on the way.
        """
        try:
            await self._place.settle()
            await self._forget_the_gone()
        except Refused as error:
            return Availability(usable=False, why=with_cure(error.message))
        except LaunchFailed as error:
            return Availability(usable=False, why=error.message)
        self._watcher.open()
        return Availability(usable=True)

    def away(self) -> str:
        """Why the Docker Engine could not be asked last; empty where it answered."""
        return self._watcher.away

    def listen(self) -> Listen:
        """Every container has addresses and ports of its own."""
        return Listen(host="0.0.0.0", port=_PORT)  # noqa: S104 - in there

    async def prepare(self, spec: LaunchSpec, tell: Tell) -> None:
        """Pull the image where it is not here."""
        image = spec.container.image if spec.container else ""
        if image and not await self._patiently_here(image):
            await pulling.pull(self._connection, image, tell)

    async def _patiently_here(self, image: str) -> bool:
        by = time.monotonic() + _BACK_S
        while True:
            try:
                return await pulling.is_here(self._connection, image)
            except Away:
                if time.monotonic() >= by:
                    raise
                await asyncio.sleep(_LOOK_S * 10)

    def record(self, name: str, generation: int, spec: LaunchSpec) -> HandleRecord:
        """The record to store before `start`: the container's name says all that is needed."""
        options = self.options
        plain = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", name)
        short = name if plain else hashlib.sha256(name.encode()).hexdigest()[:16]
        hold = ContainerHold(container=f"engineroom-{options.installation}-{short}-{generation}")
        return new_record(name, generation, spec, hold, options.folder, options.logs)

    async def start(self, record: HandleRecord) -> Handle:
        """Create and start a container; of one that cannot be started nothing is left."""
        name = _hold(record).container
        self._watcher.claim(name)
        try:
            await asyncio.to_thread(remains.make_way, record)
            await self._make_way(record)
            record.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            remains.note_container(record.folder, name, None)
            await self._place.settle()
            around = await asyncio.to_thread(surroundings, record.spec, self._place, self.options)
            id = await self._create(name, body(record, around))
            try:
                await self._start(id)
                return await self._handle(await self._settled(record, id), id)
            except BaseException:
                await remove(self._connection, id)
                raise
        except Refused as error:
            self._watcher.release(name)
            raise LaunchFailed(with_cure(error.message)) from error
        except BaseException:
            self._watcher.release(name)
            raise

    async def recover(self, record: HandleRecord) -> Handle | None:
        """The container of `record` while it runs and can be reached. Any other is removed, its
        last words are in the log. Raises Away where nobody can say, Refused where it stays.
        """
        name = _hold(record).container
        found = await self._found(name)
        mine = labels(record, self.options.installation)
        if found is None or any(
            (found["Config"].get("Labels") or {}).get(key) != value for key, value in mine.items()
        ):
            return None
        self._watcher.claim(name)
        try:
            record.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if (running := await self._reached(record, found)) is not None:
                return await self._handle(running, found["Id"])
            await self._bury(record, found)
        except BaseException:
            self._watcher.release(name)
            raise
        self._watcher.release(name)
        return None

    async def _reached(self, record: HandleRecord, found: Mapping[str, Any]) -> HandleRecord | None:
        """The record of a container as it runs; None for one that has ended, or that was taken
        out of the network that its server could be reached in."""
        if not found["State"]["Running"]:
            return None
        try:
            return await self._running(record, found)
        except Unreachable as error:
            _log.warning("engine=%s cannot be taken over: %s", record.name, error)
            return None

    async def _bury(self, record: HandleRecord, found: Mapping[str, Any]) -> None:
        """Remove a container that nobody can use, and keep its last words."""
        id = str(found["Id"])
        if found["State"]["Running"]:
            with suppress(Refused):  # it ended meanwhile
                await self._connection.call(lambda c: c.kill(id))
        follower = await self._follower(record, id)
        await asyncio.to_thread(follower.finish)
        await remove(self._connection, id)
        await asyncio.to_thread(shutil.rmtree, record.folder, ignore_errors=True)

    async def close(self) -> None:
        """Let go of everything; a network of ours that nobody uses is removed."""
        await self._watcher.close()
        await self._end_followers(self._followers)
        if not self._watcher.away:
            await self._place.leave()
        self._connection.close()

    async def _forget_the_gone(self) -> None:
        rows = await self._labelled({INSTALLATION: self.options.installation})
        names = {name_of(each) for each in rows}
        for folder in self.options.folder.glob("*/*"):
            container = remains.container_of(folder)
            if container is not None and container not in names:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _labelled(self, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """All containers with these labels, running or not."""
        wanted = {"label": [f"{key}={value}" for key, value in labels.items()]}
        rows: list[Mapping[str, Any]] = await self._connection.call(
            lambda c: c.containers(all=True, filters=wanted)
        )
        return rows

    # --- steps of a start -----------------------------------------------------------------------

    async def _make_way(self, record: HandleRecord) -> None:
        """Remove every earlier container of the same name: nobody holds it."""
        own = labels(record, self.options.installation)
        del own[GENERATION], own[PLAN]
        for row in await self._labelled(own):
            await remove(self._connection, row["Id"])

    async def _create(self, name: str, wanted: Mapping[str, Any]) -> str:
        """The new container's id. Where no answer comes it may be there all the same."""
        try:
            made = await self._connection.call(
                lambda c: c.create_container_from_config(dict(wanted), name)
            )
        except Away:
            found = await self._found(name)
            if found is None:
                raise
            return str(found["Id"])
        return str(made["Id"])

    async def _start(self, id: str) -> None:
        """Start it. Where no answer comes it is looked at until it runs."""
        try:
            await self._connection.call(lambda c: c.start(id))
        except Away:
            by = time.monotonic() + _START_S
            while not (await self._inspected(id))["State"].get("StartedAt", "0001")[:4] > "0001":
                if time.monotonic() >= by:
                    raise
                await asyncio.sleep(_LOOK_S)

    async def _settled(self, record: HandleRecord, id: str) -> HandleRecord:
        """The record of a container in which the engine's program was found and runs, or ran."""
        by = time.monotonic() + _SETTLE_S
        while True:
            found = await self._inspected(id)
            state = found["State"]
            if not state["Running"]:
                await self._refuse_missing(id, state)
                return self._held(record, id)
            running = await self._running(record, found)
            if running.child is not None or time.monotonic() >= by or not visible(state, id):
                return running
            await asyncio.sleep(_LOOK_S)

    async def _refuse_missing(self, id: str, state: Mapping[str, Any]) -> None:
        """Raise LaunchFailed where it ended because its program could not be started at all."""
        if state.get("ExitCode") in _NO_PROGRAM:
            said = (await self._connection.call(lambda c: c.logs(id, tail=5))).decode(
                errors="replace"
            )
            if "[FATAL tini" in said or "catatonit" in said:
                raise LaunchFailed(with_cure(said.strip().splitlines()[-1]))

    async def _running(self, record: HandleRecord, found: Mapping[str, Any]) -> HandleRecord:
        """The record of a container that runs; its `pid.json` tells others whose processes it
        has."""
        id = str(found["Id"])
        child = await asyncio.to_thread(leader, int(found["State"].get("Pid") or 0), id)
        listen = record.spec.listen
        address = self._place.address(found, listen.port) if listen else None
        remains.note_container(record.folder, _hold(record).container, child)
        held = self._held(record, id)
        return held.model_copy(update={"child": child, "address": address})

    def _held(self, record: HandleRecord, id: str) -> HandleRecord:
        hold = _hold(record).model_copy(update={"id": id})
        return record.model_copy(update={"hold": hold})

    async def _handle(self, record: HandleRecord, id: str) -> ContainerHandle:
        follower = await self._follower(record, id)
        return ContainerHandle(record, self._connection, self._watcher, follower)

    async def _follower(self, record: HandleRecord, id: str) -> Follower:
        """Follows the container's output from where an earlier one has stopped."""
        await self._end_followers({id})
        options = self.options
        output = Output(str(record.log), options.log_max_bytes, options.log_files)
        self._followers[id] = made = Follower(self._connection, id, output, record.folder)
        return made

    async def _end_followers(self, ids: Iterable[str]) -> None:
        """Wait for those that write no more to have written all."""
        self._followers = {id: each for id, each in self._followers.items() if each.alive}
        ending = [self._followers[id] for id in ids if id in self._followers]
        for each in ending:
            each.close()
        await asyncio.gather(*(asyncio.to_thread(each.join) for each in ending))

    async def _inspected(self, id: str) -> Mapping[str, Any]:
        """What the engine says of a container; waits for one that is away. Raises Away, Refused."""
        by = time.monotonic() + _BACK_S
        while True:
            try:
                found: Mapping[str, Any] = await self._connection.call(
                    lambda c: c.inspect_container(id)
                )
            except Away:
                if time.monotonic() >= by:
                    raise
                await asyncio.sleep(_LOOK_S)
            else:
                return found

    async def _found(self, name: str) -> Mapping[str, Any] | None:
        try:
            return await self._inspected(name)
        except Refused as error:
            if error.missing:
                return None
            raise


def _hold(record: HandleRecord) -> ContainerHold:
    """The container's side of a record. Raises TypeError for another runtime's."""
    if not isinstance(record.hold, ContainerHold):
        raise TypeError(f"{record.name} is no container, but of {record.runtime}")
    return record.hold
