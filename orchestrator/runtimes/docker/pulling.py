"""Images that are not here yet: pulled, with progress."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import Tell
from orchestrator.runtimes.docker.connection import Connection, Refused
from orchestrator.runtimes.docker.streams import Stream

_log = logging.getLogger("engineroom.docker")
_STALL_S = 300.0
_FETCHED = 0.8  # of a layer's work; the rest is unpacking it
_DONE = ("Pull complete", "Already exists")
_Line = Mapping[str, Any] | LaunchFailed | None


class Layers:
    """How far a pull is, from what the engine tells of each layer."""

    def __init__(self) -> None:
        self._done: dict[str, float] = {}
        self._size: dict[str, int] = {}
        self.percent = 0.0

    def hear(self, told: Mapping[str, Any]) -> None:
        """Take one line into account; the percentage never falls."""
        layer, status = told.get("id"), str(told.get("status", ""))
        if not layer or status.startswith("Pulling from"):
            return
        detail = told.get("progressDetail") or {}
        now, whole = detail.get("current") or 0, detail.get("total") or 0
        done = self._done.setdefault(layer, 0.0)
        if status == "Downloading" and whole:
            self._size[layer], done = whole, _FETCHED * now / whole
        elif status == "Extracting" and whole:
            done = _FETCHED + (1 - _FETCHED) * now / whole
        elif status in _DONE:
            done = 1.0
        self._done[layer] = max(done, self._done[layer])
        usual = sum(self._size.values()) / len(self._size) if self._size else 1.0
        sizes = {each: self._size.get(each, usual) for each in self._done}
        got = sum(sizes[each] * share for each, share in self._done.items())
        self.percent = max(self.percent, round(100 * got / (sum(sizes.values()) or 1.0), 1))


async def pull(connection: Connection, image: str, tell: Tell) -> None:
    """Have `image` here. Cancelling it hangs up: the engine stops. Raises LaunchFailed."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[_Line] = asyncio.Queue()
    held = Stream()

    def put(line: _Line) -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def work() -> None:
        try:
            with connection.asking() as client:
                stream, wire = _asked(client, image)
                held.through(wire)
                for line in stream if not held.ended else ():
                    put(line)
            put(None)
        except LaunchFailed as error:
            put(error)

    threading.Thread(target=work, name=f"pull {image}", daemon=True).start()
    try:
        await _follow(lines, image, tell)
    finally:
        held.end()


def _asked(client: Any, image: str) -> tuple[Iterable[Mapping[str, Any]], Any]:
    """What the engine tells of a pull, and the stream to close so that it ends.

    As the client library's own `pull`, which keeps the wire to itself and waits for ever.
    """
    from docker import auth, types, utils

    name, tag = utils.parse_repository_tag(with_tag(image))
    login = auth.get_config_header(client, auth.resolve_repository_name(name)[0])
    answer = client._post(
        client._url("/images/create"),
        params={"fromImage": name, "tag": tag},
        headers={"X-Registry-Auth": login} if login else {},
        stream=True,
        timeout=_STALL_S,
    )
    client._raise_for_status(answer)
    lines = client._stream_helper(answer, decode=True)
    return lines, types.CancellableStream(lines, answer)


async def _follow(lines: asyncio.Queue[_Line], image: str, tell: Tell) -> None:
    layers, said = Layers(), f"pulling {image}"
    _log.info("%s", said)
    tell(said, 0.0)
    while True:
        try:
            async with asyncio.timeout(_STALL_S):
                line = await lines.get()
        except TimeoutError:
            raise LaunchFailed(f"{said}: nothing came for {_STALL_S:g} s") from None
        if line is None:
            return
        if isinstance(line, LaunchFailed):
            raise _unobtainable(image, line.message) from line
        if "error" in line:
            raise _unobtainable(image, str(line["error"]))
        layers.hear(line)
        tell(said, layers.percent)


def _unobtainable(image: str, why: str) -> LaunchFailed:
    return LaunchFailed(
        f"image {image} is not here and could not be pulled: {why.strip()} (try `docker pull "
        f"{image}`, build it, or set engine_image)"
    )


async def is_here(connection: Connection, image: str) -> bool:
    """Whether an image can be used as it is. Raises Away or Refused."""
    try:
        await connection.call(lambda client: client.inspect_image(image))
    except Refused as error:
        if error.missing:
            return False
        raise
    return True


def with_tag(image: str) -> str:
    """The image with the tag that it means: without one, every tag would be pulled."""
    return image if "@" in image or ":" in image.rsplit("/", 1)[-1] else f"{image}:latest"
