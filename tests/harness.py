"""Whole servers as real processes: start them, wait for what they report, see what they leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from orchestrator.runtimes.shim.leaf import Leaf
from orchestrator.settings import DOCUMENT_VARIABLES, load_settings

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, out of those that the system lends to no connection.

    Two workers that ask at the same time are unlikely to be told the same.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port, tried = 10_000 + secrets.randbelow(22_000), stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody uses it
                tried.bind(("127.0.0.1", port))
                found.append(port)
    return found


# Bounds hold on a quiet machine, which `make faults` asks for; a shared one may be slower.
SLACK = float(os.environ.get("FAULTS_SLACK", "4"))


class Late(AssertionError):
    """Something did not happen in time, which a busy machine may be the reason of."""


def until(check: Callable[[], T | None], seconds: float, what: str) -> T:
    """Poll another process until `check` gives something true; Late far beyond the deadline."""
    deadline = time.monotonic() + SLACK * seconds
    pause = threading.Event()
    while time.monotonic() < deadline:
        if found := check():
            return found
        pause.wait(0.02)
    raise Late(f"not within {SLACK:g} x {seconds} s: {what}")


@contextlib.contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Late where what is done in it takes far longer than `seconds`."""
    began = time.monotonic()
    yield
    if (took := time.monotonic() - began) > SLACK * seconds:
        raise Late(f"{took:.2f} s, not within {SLACK:g} x {seconds} s: {what}")


def look(url: str) -> httpx.Response:
    """GET, with the patience that a busy machine needs."""
    return httpx.get(url, trust_env=False, timeout=30 * SLACK)


async def eventually(check: Callable[[], object], seconds: float, what: str) -> None:
    """`until`, for a test that has an event loop to keep alive."""
    await asyncio.to_thread(until, check, seconds, what)


def watched_by(pid: int) -> list[int]:
    """The processes that another one holds pidfds of."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            lines = file.read_text().splitlines()
            found += [int(line.split()[1]) for line in lines if line.startswith("Pid:")]
    return found


def clean_env(**more: str) -> dict[str, str]:
    """The test's environment without what would be read as settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ENGINEROOM_")}
    for name in (*DOCUMENT_VARIABLES, "PYTHONDONTWRITEBYTECODE"):
        env.pop(name, None)
    return {**env, **more}


class Room:
    """One data directory, and the servers that run on it one after another."""

    def __init__(self, data: Path, command: Sequence[str], env: dict[str, str] | None = None):
        self.data, self.command = data, tuple(command)
        self.env = env or clean_env()
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}
        self.log = data / "serve.stderr"
        self.http = httpx.Client(timeout=30 * SLACK, trust_env=False)

    # --- life ---

    def launch(self) -> subprocess.Popen[str]:
        """Start without waiting."""
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env=self.env,
            )
        return self.process

    def start(self, seconds: float = 60) -> Room:
        """Start, and wait for the ready line."""
        self.launch()
        return self.wait_ready(seconds)

    def wait_ready(self, seconds: float = 60) -> Room:
        """Wait for the ready line of what was launched."""
        process = self.process
        assert process is not None
        timer = threading.Timer(SLACK * seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        timer.cancel()
        assert line.startswith("{"), f"no ready line: {line!r}\n{self.log.read_text()[-3000:]}"
        self.ready = json.loads(line)
        return self

    def stop(self, seconds: float = 45) -> int:
        """SIGTERM, and wait for the end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait_end(seconds)

    def wait_end(self, seconds: float = 45) -> int:
        """Wait for the supervisor's exit code."""
        assert self.process is not None
        code = self.process.wait(SLACK * seconds)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def kill(self) -> None:
        """SIGKILL the supervisor only."""
        assert self.process is not None
        self.process.kill()
        self.wait_end()

    # --- looking ---

    @property
    def url(self) -> str:
        return str(self.ready["gateway"])

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def token(self) -> str:
        return (self.data / "admin.token").read_text().strip()

    def admin(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"}
        return self.http.request(method, self.ready["admin"] + path, headers=headers, **kwargs)

    def engines(self, model: str = "demo") -> list[dict[str, Any]]:
        """The admin API's rows of a model's engines, the oldest first."""
        rows = self.admin("GET", "/admin/engines").json()["engines"]
        return [row for row in rows if row["model"] == model]

    def engine(self, name: str | None = None) -> dict[str, Any]:
        """The admin API's row of one engine; the newest of `demo` where none is named."""
        return dict(self.admin("GET", f"/admin/engines/{name or self.engines()[-1]['id']}").json())

    def engine_of(self, model: str) -> dict[str, Any]:
        """The newest engine of a model."""
        return self.engines(model)[-1]

    def wait_state(
        self, state: str, name: str | None = None, seconds: float = 30
    ) -> dict[str, Any]:
        """Wait until an engine is in `state`; its row."""

        def check() -> dict[str, Any] | None:
            row = self.engine(name)
            return row if row.get("state") == state else None

        return until(check, seconds, f"{name or 'engine'} {state}, is {self.engine(name)}")

    def model(self, name: str = "demo") -> dict[str, Any]:
        """The admin API's row of one model."""
        rows = self.admin("GET", "/admin/models").json()["models"]
        return next(row for row in rows if row["model"] == name)

    def events(self, type: str | None = None) -> list[dict[str, Any]]:
        """What happened, the oldest first."""
        rows = self.admin("GET", "/admin/events", params={"limit": 1000}).json()["events"]
        return [row for row in reversed(rows) if type in (None, row["type"])]

    def wait_generation(self, number: int, seconds: float = 30) -> None:
        """Wait until the engine was launched that often."""
        until(lambda: self.engine()["generation"] >= number, seconds, f"launch {number}")

    def metric(self, name: str, **labels: str) -> float:
        """One sample of the control plane's metrics, 0 where it is absent."""
        return sample(self.admin("GET", "/metrics").text, name, labels)

    def generate(self, prompt: str = "Hi", **fields: Any) -> httpx.Response:
        return self.http.post(f"{self.url}/generate", json={"prompt": prompt, **fields})

    @contextlib.contextmanager
    def stream(self, prompt: str, **fields: Any) -> Iterator[Iterator[str]]:
        """The data payloads of /generate_stream, as they come."""
        body = {"prompt": prompt, **fields}
        with self.http.stream("POST", f"{self.url}/generate_stream", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            yield (line[6:] for line in answer.iter_lines() if line.startswith("data: "))

    @property
    def run_folder(self) -> Path:
        """Where the sockets of this data directory are."""
        return load_settings({"data_dir": str(self.data)}, {}).run

    def processes(self) -> list[psutil.Process]:
        """Every live process that was started for this data directory."""
        return processes_of(str(self.data))

    def processes_named(self, word: str) -> list[psutil.Process]:
        """Those of them with `word` in their command line."""
        found = []
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                if any(word in x for x in each.cmdline()):
                    found.append(each)
        return found

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        self.http.close()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        if self.process is not None:
            self.process.kill()
            self.wait_end()
        remove_leaves(self.data)
        shutil.rmtree(self.run_folder, ignore_errors=True)


def processes_of(marker: str) -> list[psutil.Process]:
    """Live processes whose command line or working folder names `marker`."""
    found = []
    for each in psutil.process_iter():
        if each.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            if each.status() == psutil.STATUS_ZOMBIE:
                continue
            texts = [*each.cmdline(), each.cwd()]
            if any(marker in text for text in texts):
                found.append(each)
    return found


def remove_leaves(data: Path) -> list[str]:
    """Remove the control groups of engines below `data`; those that ought to have been gone."""
    found = []
    for file in data.rglob("leaf.json"):
        leaf = Leaf(json.loads(file.read_text())["leaf"])
        found += [folder for folder in leaf.folders if Path(folder).exists()]
        leaf.kill()
        leaf.remove()
    return found


def sample(text: str, name: str, labels: dict[str, str]) -> float:
    """The sum of a series of an exposition text over all labels that are not said."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith((f"{name.strip()} ", f"{name.strip()}{{"))
        and all(f'{k}="{v}"' in line for k, v in labels.items())
    )


def fake_room(
    data: Path,
    *knobs: str,
    serial: bool = True,
    engines: Path | None = None,
    file: Path | None = None,
    **settings: Any,
) -> Room:
    """A server over the fake engine."""
    port, admin_port = free_ports(2)
    merged = {
        "port": port,
        "admin_port": admin_port,
        "data_dir": str(data),
        "engines_dir": str(engines or data / "envs"),
        "probe_interval_s": 0.5,
        "drain_s": 5,
        "stop_grace_s": 2,
        **settings,
    }
    order = {"knobs": list(knobs), "serial": serial, "settings": merged}
    if file is not None:
        order["file"] = str(file)
    return Room(data, [sys.executable, "-m", "tests.fakes.serve_fake", json.dumps(order)])
