"""Docker Engines for the tests, and the small image that their containers are made from.

The image is this interpreter with its standard library and the C library: no registry is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import docker
import psutil
from docker import errors

from orchestrator.runtimes.docker.labels import INSTALLATION
from tests.harness import ROOT, until

SCRIPT = ROOT / "tools" / "docker_engine.sh"
PYTHON = os.path.realpath(sys.executable)
PACKAGES = Path(psutil.__file__).parent.parent  # where those lie that the tests are run with
_LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "tkinter", "turtledemo", "ensurepip"}
_LEFT_OUT |= {"__pycache__", "lib2to3", "config-3.11-x86_64-linux-gnu"}


class Engine:
    """A Docker Engine at an address; `folder` where it is one of our own, with dockerd's options.

    One that is not ours is never stopped.
    """

    def __init__(self, address: str | None, folder: Path | None = None, *options: str) -> None:
        self.address, self.folder, self.options = address, folder, options
        self._client: Any = None
        if folder is not None:
            self.up()

    @property
    def env(self) -> dict[str, str]:
        """What names it in an environment."""
        return {"DOCKER_HOST": self.address} if self.address else {}

    @property
    def client(self) -> Any:
        """To look and to interfere beside what is tested."""
        if self._client is None:
            found = docker.utils.kwargs_from_env(environment=self.env)
            self._client = docker.APIClient(version="auto", timeout=60, **found)
        return self._client

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except (errors.DockerException, OSError):
            return False

    def close(self) -> None:
        """Let go of it."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- life, of one of our own ---

    def up(self) -> None:
        """Start it, and wait until it answers."""
        command = ["sh", str(SCRIPT), "start", str(self.folder), *self.options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        self.address = done.stdout.strip()
        until(self.answers, 30, "the Docker Engine answers")

    @property
    def pid(self) -> int:
        assert self.folder is not None
        return int((self.folder / "docker.pid").read_text())

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it with a signal; what it ran goes with it unless it is told to leave that be."""
        self.close()
        process = psutil.Process(self.pid)
        process.send_signal(number)
        until(lambda: over(process), 60, "dockerd ends")
        assert self.folder is not None
        # A containerd that process 1 has not reaped yet would be taken for one that runs.
        for name in ("docker.pid", "docker.sock", "exec/containerd/containerd.pid"):
            (self.folder / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """End it for good, and all that it ran."""
        assert self.folder is not None
        if not self.answers():
            self.close()
            self.up()
        for each in self.client.containers(all=True):
            self.client.remove_container(each["Id"], force=True)
        for each in self.client.networks():
            if each["Name"] not in {"bridge", "host", "none"}:
                self.client.remove_network(each["Id"])
        self.end()
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (place := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", place], check=True)
        shutil.rmtree(self.folder)

    # --- looking ---

    def containers(self, installation: str | None = None) -> list[dict[str, Any]]:
        """Engines' containers, of one installation or of any."""
        label = f"{INSTALLATION}={installation}" if installation else INSTALLATION
        return list(self.client.containers(all=True, filters={"label": [label]}))

    def remove_containers(self, installation: str) -> None:
        """End and remove what a server left."""
        for each in self.containers(installation):
            self.client.remove_container(each["Id"], force=True)

    def image(self) -> str:
        """The small image, made where it is missing."""
        name = f"engineroom-test/python:{_digest()}"
        with contextlib.suppress(errors.ImageNotFound):
            self.client.inspect_image(name)
            return name
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            _pack(Path(file.name))
            self.client.import_image(src=file.name, repository=name)
        return name


@cache
def _digest() -> str:
    found = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode() + PYTHON.encode())
    return found.hexdigest()[:12]


def _libraries(program: str) -> set[str]:
    """The shared libraries that the loader gives a program, and the loader itself."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return {word for line in told.splitlines() for word in line.split() if word.startswith("/")}


def _pack(target: Path) -> None:
    """The image's root file system."""
    base = Path(sys.base_prefix)
    library = base / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    files = {each for each in library.rglob("*") if not _LEFT_OUT & set(each.parts)}
    modules = [str(each) for each in files if each.suffix == ".so"]
    for name in ("psutil", "pydantic_core"):  # a supervisor in a container is tested, too
        modules += map(str, (PACKAGES / name).glob("*.so"))
    needed = set().union(*(_libraries(each) for each in (PYTHON, *modules)))
    with tarfile.open(target, "w") as tar:
        for name in sorted({PYTHON, *needed}):
            tar.add(os.path.realpath(name), arcname=name)
        for each in sorted(files):
            tar.add(each, recursive=False)
        for name in ("tmp", "usr/bin", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, PYTHON
        tar.addfile(link)
        users = b"root:x:0:0::/tmp:/none\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(users)
        tar.addfile(passwd, io.BytesIO(users))


def over(process: psutil.Process) -> bool:
    """Whether it has ended; process 1 may take its time to take note."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@contextlib.contextmanager
def own_engine(*options: str) -> Iterator[Engine]:
    """A Docker Engine of our own, in a folder with a short name."""
    folder = Path(tempfile.mkdtemp(prefix="er-docker-", dir="/tmp"))
    engine = Engine(None, folder, *options)
    try:
        yield engine
    finally:
        engine.remove()


@contextlib.contextmanager
def engine_beside(*options: str) -> Iterator[Engine]:
    """One beside another: with a bridge of its own, and no rules that would replace the other's.

    No address pools of its own: with these dockerd 20.10 removes docker0 when it starts again.
    """
    number = secrets.randbelow(90)
    bridge = f"ertest{number}"
    made = ["sh", str(SCRIPT), "bridge", bridge, f"10.{100 + number}.0.1/24"]
    subprocess.run(made, check=True, timeout=30)
    apart = (f"--bridge={bridge}", "--iptables=false", "--ip-forward=false")
    try:
        with own_engine(*apart, *options) as engine:
            yield engine
    finally:
        subprocess.run(["ip", "link", "del", bridge], check=True, timeout=30)


@contextlib.contextmanager
def docker_engine() -> Iterator[Engine]:
    """The Docker Engine of this machine, else one that is started for the tests."""
    there = Engine(os.environ.get("DOCKER_HOST"))
    if there.answers():
        yield there
        there.close()
        return
    assert can_start_one(), (
        "no Docker Engine answers, and none can be started: run `tools/docker_engine.sh install` "
        "as root, or leave these tests out with -m 'not docker'"
    )
    with own_engine() as started:
        yield started


def can_start_one() -> bool:
    """Whether a Docker Engine can be started here."""
    return os.geteuid() == 0 and shutil.which("dockerd") is not None
