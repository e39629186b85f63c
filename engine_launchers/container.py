"""What a container is made from, beside a command."""

from __future__ import annotations

from engine_launchers.value import Value


class Container(Value):
    """What a container needs beside a command.

    `gpus` are its cards as the driver names them: uuids, or numbers where it has none. `plan` is
    the plan's id, to be read on the container.
    """

    image: str
    gpus: tuple[str, ...] = ()
    plan: str = ""
