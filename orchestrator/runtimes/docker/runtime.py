"""Engines in containers: starts them, and finds them again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping
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
)
from orchestrator.runtimes.docker import pulling
from orchestrator.runtimes.docker.body import body, labels, with_cure
from orchestrator.runtimes.docker.connection import Away, Connection, Refused
from orchestrator.runtimes.docker.handle import ContainerHandle
from orchestrator.runtimes.docker.here import DockerOptions, leader, surroundings, visible
from orchestrator.runtimes.docker.labels import GENERATION, PLAN
from orchestrator.runtimes.docker.logs import Follower
from orchestrator.runtimes.docker.place import Place
from orchestrator.runtimes.docker.watcher import Note, Watcher, remove
from orchestrator.runtimes.shim.output import Output

_PORT = 8000
_RESERVE = (
    1 << 30
)  # of the machine's memory: an engine that wants all is killed, not its neighbours
_RESERVE_SHARE = 0.05
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

    async def check(self) -> Availability:
        """Usable where the engine answers and its containers can be reached from here."""
        try:
            await self._place.settle()
        except LaunchFailed as error:
            return Availability(usable=False, why=with_cure(error.message))
        self._watcher.open()
        return Availability(usable=True)

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
        log = options.logs / f"{name}.log"
        plain = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", name)
        short = name if plain else hashlib.sha256(name.encode()).hexdigest()[:16]
        container = f"engineroom-{options.installation}-{short}-{generation}"
        return HandleRecord(
            name=name,
            generation=generation,
            spec=spec,
            hold=ContainerHold(container=container),
            folder=options.folder / name / str(generation),
            log=log,
            log_start=log.stat().st_size if log.exists() else 0,
        )

    async def start(self, record: HandleRecord) -> Handle:
        """Create and start a container; of one that cannot be started nothing is left."""
        name = _hold(record).container
        self._watcher.claim(name)
        try:
            await asyncio.to_thread(remains.make_way, record)
            await self._make_way(record)
            record.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            await self._place.settle()
            around = await asyncio.to_thread(surroundings, record.spec, self._place, self.options)
            id = await self._create(name, body(record, around))
            try:
                await self._start(id)
                running = await self._settled(record, id)
            except BaseException:
                await remove(self._connection, id)
                raise
        except Refused as error:
            self._watcher.release(name)
            raise LaunchFailed(with_cure(error.message)) from error
        except BaseException:
            self._watcher.release(name)
            raise
        return self._handle(running, id)

    async def recover(self, record: HandleRecord) -> Handle | None:
        """The container of `record` while it runs. One that has ended is removed, its last words
        are in the log."""
        name = _hold(record).container
        found = await self._found(name)
        mine = labels(record, self.options.installation)
        if found is None or any(
            (found["Config"].get("Labels") or {}).get(key) != value for key, value in mine.items()
        ):
            return None
        self._watcher.claim(name)
        record.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if found["State"]["Running"]:
            return self._handle(await self._running(record, found), found["Id"])
        follower = self._follower(record, found["Id"])
        await asyncio.to_thread(follower.finish)
        await remove(self._connection, found["Id"])
        self._watcher.release(name)
        return None

    async def close(self) -> None:
        """Let go of everything; a network of ours that nobody uses is removed."""
        await self._watcher.close()
        await self._place.leave()
        self._connection.close()

    # --- steps of a start -----------------------------------------------------------------------

    async def _make_way(self, record: HandleRecord) -> None:
        """Remove every earlier container of the same name: nobody holds it."""
        own = labels(record, self.options.installation)
        del own[GENERATION], own[PLAN]
        filters = {"label": [f"{key}={value}" for key, value in own.items()]}
        rows = await self._connection.call(lambda c: c.containers(all=True, filters=filters))
        for row in rows:
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
        if child is not None:
            told = {"shim": None, "child": child.model_dump()}
            (record.folder / "pid.json").write_text(json.dumps(told))
        held = self._held(record, id)
        return held.model_copy(update={"child": child, "address": address})

    def _held(self, record: HandleRecord, id: str) -> HandleRecord:
        hold = _hold(record).model_copy(update={"id": id})
        return record.model_copy(update={"hold": hold})

    def _handle(self, record: HandleRecord, id: str) -> ContainerHandle:
        return ContainerHandle(
            record,
            _hold(record).container,
            id,
            self._connection,
            self._watcher,
            self._follower(record, id),
        )

    def _follower(self, record: HandleRecord, id: str) -> Follower:
        options = self.options
        output = Output(str(record.log), options.log_max_bytes, options.log_files)
        return Follower(self._connection, id, output, record.folder)

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
