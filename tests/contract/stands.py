"""What the contract of runtimes is shown with: each runtime, and small programs that it runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from engine_launchers.base import LaunchSpec
from engine_launchers.container import Container
from orchestrator.runtimes.base import ContainerHold, Handle, HandleRecord, Runtime, ShimHold
from orchestrator.runtimes.docker.here import DockerOptions
from orchestrator.runtimes.docker.runtime import DockerRuntime
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime
from tests.containers import PYTHON, Engine
from tests.harness import eventually, processes_of, remove_leaves

ENGINE = Path(__file__).parents[1] / "fakes" / "engine.py"
FOREVER = "import signal, sys; print('up', flush=True); signal.pause()"
ESCAPING = (
    "import os, signal, sys\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True)\n"
    "        signal.pause()\n"
    "    os._exit(0)\n"
    "signal.pause()\n"
)
COUNTING = (
    "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.002)\n"
)
LOSING = (
    "import os, sys, time\n"
    "child = os.fork()\n"
    "if child == 0:\n"
    "    open('/proc/self/oom_score_adj', 'w').write('1000')\n"
    "    eaten = []\n"
    "    while True: eaten.append(b'x' * (1 << 20))\n"
    "os.waitpid(child, 0)\n"
)
LOG_BYTES = 65_536


class Stand:
    """One runtime, and how a program is to be named for it."""

    def __init__(self, runtime: Runtime, python: str, container: Container | None = None) -> None:
        self.runtime, self._python, self._container = runtime, python, container
        self.notes: list[tuple[str, dict[str, Any]]] = []

    def spec(self, *argv: str, **more: Any) -> LaunchSpec:
        """A command of the Python that it has."""
        return LaunchSpec(argv=(self._python, *argv), container=self._container, **more)

    def order(self, code: str, generation: int = 1, **more: Any) -> HandleRecord:
        """The record of a small Python program."""
        return self.runtime.record("child", generation, self.spec("-c", code, **more))

    def engine(self, *knobs: str) -> HandleRecord:
        """The record of the fake engine, which listens where the runtime says."""
        at = self.runtime.listen()
        argv = (str(ENGINE), "--host", at.host, "--port", str(at.port), *knobs)
        spec = self.spec(*argv, listen=at, files=(str(ENGINE),))
        return self.runtime.record("child", 1, spec)

    def cut_off(self, handle: Handle) -> None:
        """Leave it running where nobody can get hold of it or talk to it any more."""
        raise NotImplementedError

    def note(self, type: str, subject: str, **detail: Any) -> None:
        """Take down what the runtime tells of."""
        self.notes.append((type, detail))


class Processes(Stand):
    """Below shims, which listen in the folder `sockets`."""

    sockets: Path

    def cut_off(self, handle: Handle) -> None:
        hold = handle.record.hold
        assert isinstance(hold, ShimHold)
        assert hold.shim is not None
        os.kill(hold.shim.pid, signal.SIGKILL)
        shutil.rmtree(self.sockets)


class Containers(Stand):
    """Of a Docker Engine, in one network."""

    docker: Engine

    def cut_off(self, handle: Handle) -> None:
        hold = handle.record.hold
        assert isinstance(hold, ContainerHold)
        found = self.docker.client.inspect_container(hold.id)
        for network in found["NetworkSettings"]["Networks"]:
            self.docker.client.disconnect_container_from_network(hold.id, network)


async def up(handle: Handle) -> None:
    """Wait until the child printed its first line."""
    log = handle.record.log
    await eventually(lambda: log.exists() and "\n" in log.read_text(), 20, "the first line")


async def started(stand: Stand) -> Handle:
    """A child that does nothing until it is ended, and has begun."""
    handle = await stand.runtime.start(stand.order(FOREVER))
    await up(handle)
    return handle


def lines_of(handle: Handle) -> list[str]:
    """The whole lines of its log."""
    log = handle.record.log
    return log.read_text().split("\n")[:-1] if log.exists() else []


def tree(handle: Handle) -> list[psutil.Process]:
    """Everything below what holds the child: what left its session too."""
    assert handle.record.child is not None
    above = psutil.Process(handle.record.child.pid).parent()
    assert above is not None
    return above.children(recursive=True)


@contextlib.asynccontextmanager
async def process_stand(folder: Path) -> AsyncIterator[Stand]:
    """Processes; nothing of them is left."""
    (folder / "logs").mkdir()
    sockets = Path("/tmp") / f"er-{os.getpid()}-{secrets.token_hex(3)}"
    sockets.mkdir()
    options = ProcessOptions(
        folder=folder / "instances",
        logs=folder / "logs",
        sockets=sockets,
        lease_s=30,
        grace_s=1,
        log_max_bytes=LOG_BYTES,
        log_files=2,
    )
    stand = Processes(ProcessRuntime(options, os.environ), sys.executable)
    stand.sockets = sockets
    yield stand
    for each in processes_of(str(folder)):
        each.kill()
    shutil.rmtree(sockets, ignore_errors=True)
    assert remove_leaves(folder) == []


@contextlib.asynccontextmanager
async def docker_stand(
    folder: Path, engine: Engine, image: str, leftover_s: float = 300, network: str | None = None
) -> AsyncIterator[Stand]:
    """Containers of a real Docker Engine; nothing of them is left."""
    (folder / "logs").mkdir(exist_ok=True)
    options = DockerOptions(
        folder=folder / "instances",
        logs=folder / "logs",
        installation=secrets.token_hex(6),
        network=network,
        log_max_bytes=LOG_BYTES,
        log_files=2,
        leftover_s=leftover_s,
    )
    stand: Containers
    runtime = DockerRuntime(
        options, engine.env, lambda type, subject, **told: stand.note(type, subject, **told)
    )
    stand = Containers(runtime, PYTHON, Container(image=image, plan="a-plan"))
    stand.docker = engine
    try:
        yield stand
    finally:
        for each in engine.containers(options.installation):
            engine.client.remove_container(each["Id"], force=True)
        await runtime.close()
    names = [each["Name"] for each in engine.client.networks()]
    assert f"engineroom-{options.installation}" not in names
