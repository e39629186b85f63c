"""What happens to the containers of one installation: heard as events, looked at now and then.

Events tell of an end at once. Where they cannot be had, or the Docker Engine was away meanwhile, a
look at the list tells. While it is away nothing is concluded: containers may well run on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from engine_launchers.base import ExitResult
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.docker.body import exit_result
from orchestrator.runtimes.docker.connection import Away, Connection, Refused
from orchestrator.runtimes.docker.labels import INSTALLATION

_log = logging.getLogger("engineroom.docker")


class Note(Protocol):
    """Takes the type of an event, its subject, and what there is to tell."""

    def __call__(self, type: str, subject: str, **detail: Any) -> object:
        """Write it down."""


_LOOK_S = 5.0
_AWAY_S = 0.5
_ALIVE = {"running", "paused", "restarting", "created"}
_KILLED = "137"  # whoever removes a container that runs kills it


class Watcher:
    """Knows which containers are held, and tells their holders of the end.

    What nobody holds for `grace_s` is a leftover of this installation, and is removed.
    """

    def __init__(
        self, connection: Connection, installation: str, tell: Note, grace_s: float
    ) -> None:
        self._connection, self._installation = connection, installation
        self._tell, self._grace_s = tell, grace_s
        self._held: dict[str, str | None] = {}  # a container's name, and its id once it has one
        self._ends: dict[str, asyncio.Future[ExitResult]] = {}
        self._unheld: dict[str, float] = {}
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        self._closed = threading.Event()
        self._stream: Any = None
        self._concluding: set[asyncio.Task[None]] = set()

    # --- who holds what -------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to watch; once is enough."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._look_for_ever(), name="containers")
            self._thread = threading.Thread(
                target=self._listen, args=(loop,), name="docker events", daemon=True
            )
            self._thread.start()

    def claim(self, name: str) -> None:
        """A container of that name is somebody's, whether it is there yet or not."""
        self.open()
        self._held[name] = None

    def hold(self, name: str, id: str) -> asyncio.Future[ExitResult]:
        """How the container ends, or ended."""
        self.open()
        self._held[name] = id
        self._ends[id] = asyncio.get_running_loop().create_future()
        self.look_soon()
        return self._ends[id]

    def release(self, name: str) -> None:
        """Nobody holds it any more."""
        id = self._held.pop(name, None)
        if id and (end := self._ends.pop(id, None)):
            end.cancel()

    async def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        tasks = {*self._concluding, *([self._task] if self._task else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._task is not None:
            await asyncio.to_thread(self._hush)

    def _hush(self) -> None:
        if (stream := self._stream) is not None:
            with suppress(OSError, AttributeError, ValueError):  # it ended meanwhile
                stream.close()
        self._thread.join(1)

    # --- looking --------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Something may have happened that no event tells of."""
        self._soon.set()

    async def _look_for_ever(self) -> None:
        while True:
            self._soon.clear()
            try:
                rows, known = await self._rows()
            except Away as error:
                self._lost(error)
            except Refused as error:
                _log.warning("containers cannot be listed: %s", error)
            else:
                self._judge(rows, known)
                await self._collect(rows)
            pause = _LOOK_S if self._away_since is None else _AWAY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._soon.wait()

    async def _rows(self) -> tuple[list[Mapping[str, Any]], dict[str, str | None]]:
        """Our containers, and who of them was held all the time that the list was made."""
        mine, before = {"label": [f"{INSTALLATION}={self._installation}"]}, dict(self._held)
        rows: list[Mapping[str, Any]] = await self._connection.call(
            lambda client: client.containers(all=True, filters=mine)
        )
        known = {name: id for name, id in before.items() if self._held.get(name) == id}
        return rows, known

    def _judge(self, rows: list[Mapping[str, Any]], known: Mapping[str, str | None]) -> None:
        states = {each["Id"]: each.get("State") for each in rows}
        held = {id for id in known.values() if id}
        ended = [id for id in held if states.get(id) not in _ALIVE]
        self._found(len(held) - len(ended), len(ended))
        for id in ended:
            self._conclude(id, None)

    def _lost(self, error: Away) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            _log.error("%s", error)
            self._tell("runtime.lost", "docker", why=error.message, held=len(self._ends))

    def _found(self, running: int, ended: int) -> None:
        if self._away_since is not None:
            seconds = round(time.monotonic() - self._away_since, 3)
            self._away_since = None
            _log.warning("the Docker Engine is back: %d run on, %d ended", running, ended)
            self._tell("runtime.back", "docker", seconds=seconds, running=running, ended=ended)

    async def _collect(self, rows: list[Mapping[str, Any]]) -> None:
        """Remove what nobody has held for the time of grace."""
        now, names = time.monotonic(), {_name(each): each for each in rows}
        self._unheld = {
            name: self._unheld.get(name, now) for name in names if name not in self._held
        }
        for name, since in self._unheld.items():
            if now - since < self._grace_s:
                continue
            _log.warning("container %s belongs to nobody here and is removed", name)
            self._tell("runtime.leftover", name)
            try:
                await remove(self._connection, names[name]["Id"])
            except LaunchFailed as error:  # tried again at the next look
                _log.warning("container %s stays: %s", name, error)

    # --- events ---------------------------------------------------------------------------------

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear of ends until `close`; in a thread."""
        filters = {"label": [f"{INSTALLATION}={self._installation}"], "event": ["die", "destroy"]}
        while not self._closed.is_set():
            pause = _AWAY_S
            try:
                with self._connection.asking() as client:
                    self._stream = client.events(decode=True, filters=filters)
                    self._post(loop, self.look_soon)  # what happened before
                    for event in self._stream:
                        self._post(loop, self._heard, event)
            except Refused as error:
                pause = _LOOK_S
                _log.info("no events from the Docker Engine, looks have to do: %s", error)
            except LaunchFailed:  # the next look tells of it
                pause = _AWAY_S
            self._post(loop, self.look_soon)
            self._closed.wait(pause)

    def _post(self, loop: asyncio.AbstractEventLoop, what: Callable[..., None], *args: Any) -> None:
        if not self._closed.is_set():
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(what, *args)

    def _heard(self, event: Mapping[str, Any]) -> None:
        id = event.get("id") or event.get("Actor", {}).get("ID")
        if id in self._ends:
            told = event.get("Actor", {}).get("Attributes", {}).get("exitCode")
            self._conclude(id, told)

    def _conclude(self, id: str, told: str | None) -> None:
        task = asyncio.get_running_loop().create_task(self._concluded(id, told))
        self._concluding.add(task)
        task.add_done_callback(self._concluding.discard)

    async def _concluded(self, id: str, told: str | None) -> None:
        """Tell the holder how it ended; `told` is the exit code that an event named."""
        end = self._ends.get(id)
        if end is None or end.done():
            return
        try:
            state = (await self._connection.call(lambda c: c.inspect_container(id)))["State"]
        except Refused as error:
            if not error.missing:
                _log.warning("container %s: %s", id[:12], error)
                return
            result = exit_result({"ExitCode": told if told and told.isdigit() else _KILLED})
        except Away:  # looked at again when it is back
            return
        else:
            if state.get("Running"):
                return
            result = exit_result(state)
        if not end.done():
            end.set_result(result)


async def remove(connection: Connection, id: str) -> None:
    """Remove a container, running or not, with its volumes. Raises Away, or Refused where it stays.

    One that is gone, or is being removed, is no error.
    """
    try:
        await connection.call(lambda client: client.remove_container(id, v=True, force=True))
    except Refused as error:
        if error.status not in (404, 409):
            raise


def _name(row: Mapping[str, Any]) -> str:
    return str((row.get("Names") or ["/"])[0]).removeprefix("/")
