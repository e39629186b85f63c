"""A gateway process over fake engines, with the test in the supervisor's place.

The server does not matter here: engines are started and killed by hand, and the route table says
whatever the test wants it to.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from engine_launchers.base import CrashCause
from engine_launchers.llama_cpp import LlamaCppLauncher
from orchestrator import __version__
from orchestrator.control import (
    Failed,
    GatewayConfig,
    Message,
    ModelRoute,
    Replica,
    Report,
    RouteTable,
    decode,
    encode,
)
from tests.harness import ROOT, SLACK, free_ports, look, sample, until

ENGINE = ROOT / "tests" / "fakes" / "engine.py"


class FakeEngine:
    """One fake engine process, and the replica that stands for it."""

    def __init__(self, name: str, knobs: Sequence[str], places: int) -> None:
        self.name, self.knobs, self.places, self.generation = name, tuple(knobs), places, 0
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        """Launch it, on another port than before."""
        argv = [sys.executable, str(ENGINE), "--port", "0", *self.knobs]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.generation += 1
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def replica(self) -> Replica:
        return Replica(
            id=self.name, generation=self.generation, base_url=self.url, accepting=True,
            max_concurrency=self.places,
        )  # fmt: skip

    def stats(self) -> dict[str, Any]:
        return dict(look(f"{self.url}/stats").json())

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


class Stage:
    """Gateway, engines and control socket. Leave it by `close`."""

    def __init__(
        self, folder: Path, *engines: Sequence[str], places: int = 16, **config: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.engines = [
            FakeEngine(f"m-{index}", knobs, places) for index, knobs in enumerate(engines)
        ]
        self.failed: list[Failed] = []
        self.report: Report | None = None
        self.version = 0
        self._conn: socket.socket | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(folder / "c.sock"))
        self._server.listen()
        self._thread = threading.Thread(target=self._control, daemon=True)
        self._thread.start()
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        given: dict[str, Any] = {
            "version": __version__, "name": "gateway-0", "host": "127.0.0.1", "port": port,
            "control_socket": str(folder / "c.sock"), "max_queue": 100, "queue_timeout_s": 10,
            "max_body_bytes": 1 << 20, "stall_timeout_s": 1, "write_timeout_s": 5,
            "log_level": "info",
        }  # fmt: skip
        path = folder / "gateway.json"
        path.write_text(GatewayConfig(**{**given, **config}).model_dump_json())
        self.log = folder / "gateway.log"
        with self.log.open("w") as log:
            argv = [sys.executable, "-m", "orchestrator.gateway", "--config", str(path)]
            self.process = subprocess.Popen(argv, cwd=ROOT, stderr=log)
        self.http = httpx.Client(timeout=30 * SLACK, trust_env=False)
        until(lambda: self._conn, 20, "the gateway dials")
        self.publish()
        until(self._answers, 20, "the gateway answers")

    # --- as the supervisor ---

    def publish(self, *names: str, crashed: CrashCause | None = None) -> None:
        """Send a table with every engine that lives, or those of `names`; wait until it is used.

        The dead are told to have crashed, where a cause is given.
        """
        shown = [each for each in self.engines if each.name in (names or (each.name,))]
        self.version += 1
        route = ModelRoute(
            name="m", state="ready", engine="llama_cpp", context=1 << 20, created=0,
            routes=LlamaCppLauncher.routes, quirks=LlamaCppLauncher.quirks,
            replicas=tuple(each.replica() for each in shown if each.alive),
            lost={each.name: crashed for each in self.engines if crashed and not each.alive},
        )  # fmt: skip
        self.send(RouteTable(version=self.version, models=(route,)))
        until(lambda: self.report and self.report.version == self.version, 10, "table applied")

    def send(self, message: Message) -> None:
        assert self._conn is not None
        self._conn.sendall(encode(message))

    def _control(self) -> None:
        with suppress(OSError):
            conn, _ = self._server.accept()
            self._conn = conn
            for line in conn.makefile("rb"):
                message = decode(line)
                if isinstance(message, Report):
                    self.report = message
                elif isinstance(message, Failed):
                    self.failed.append(message)

    # --- as a client ---

    def ask(self, prompt: str = "Hi", **fields: Any) -> httpx.Response:
        body = {"prompt": prompt, "max_new_tokens": 3, **fields}
        return self.http.post(f"{self.url}/generate", json=body)

    @contextmanager
    def stream(self, prompt: str, **fields: Any) -> Iterator[Iterator[str]]:
        """The data payloads of /generate_stream, as they come."""
        body = {"prompt": prompt, **fields}
        with self.http.stream("POST", f"{self.url}/generate_stream", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            yield (line[6:] for line in answer.iter_lines() if line.startswith("data: "))

    def metric(self, name: str, **labels: str) -> float:
        return sample(self.http.get(f"{self.url}/metrics").text, name, labels)

    def requests(self) -> list[int]:
        """How many requests each living engine has seen."""
        return [each.stats()["requests"] for each in self.engines if each.alive]

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return self.http.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()
        for each in self.engines:
            each.end()
        if self._conn is not None:
            with suppress(OSError):
                self._conn.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)
        if self._conn is not None:
            self._conn.close()


@contextmanager
def staged(*engines: Sequence[str], **config: Any) -> Iterator[Stage]:
    """A stage in a folder of its own, one fake engine for each list of knobs."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), *engines, **config)
        try:
            yield stage
        finally:
            stage.close()
