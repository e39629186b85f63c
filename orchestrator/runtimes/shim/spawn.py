"""Fork the engine, write down who it is, and only then let it run."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn

from .kernel import identity, write_json
from .leaf import Leaf

_DEFAULTS = (
    signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD,
)  # fmt: skip


def spawn(spec: dict[str, Any], leaf: Leaf, log: int) -> dict[str, Any]:
    """Start the engine in a session and a leaf of its own; `shim` and `child`, as in pid.json.

    Raises OSError where it could not be started; nothing of it is left then. A shim that is killed
    before pid.json is written takes the child with it: nobody could find that one again.
    """
    gate_read, gate = os.pipe()
    failed_read, failed = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(gate)
        os.close(failed_read)
        _become(spec, leaf, log, gate_read, failed)
    os.close(gate_read)
    os.close(failed)
    try:
        pids = {"shim": identity(os.getpid()), "child": identity(child)}
        write_json(os.path.join(spec["folder"], "pid.json"), pids)
        os.write(gate, b"x")
        os.close(gate)
        gate = -1
        if number := os.read(failed_read, 64):
            os.waitpid(child, 0)
            raise OSError(int(number), os.strerror(int(number)), spec["argv"][0])
    finally:
        os.close(failed_read)
        if gate >= 0:  # it waits for a word that will not come
            os.close(gate)
            os.waitpid(child, 0)
    return pids


def _become(spec: dict[str, Any], leaf: Leaf, log: int, gate: int, failed: int) -> NoReturn:
    """The engine's side of the fork. Pipes close by themselves when the engine's program begins."""
    try:
        signal.set_wakeup_fd(-1)
        for number in _DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        leaf.enter()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if os.read(gate, 1):
            os.chdir(spec["cwd"])
            os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - argv is ours
    except OSError as error:
        os.write(failed, str(error.errno or 0).encode())
    finally:
        os._exit(127)
