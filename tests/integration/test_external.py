"""A server that somebody else runs, given by its address."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from engine_launchers import load_launcher
from orchestrator.errors import EngineRoomError
from orchestrator.external import plan_of
from tests.harness import SLACK, Room, free_ports, until

RoomMaker = Callable[..., Room]
ENGINE = Path(__file__).parents[1] / "fakes" / "engine.py"


class Stranger:
    """A fake engine that nobody of ours started."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run it, from the first time on or again."""
        argv = [sys.executable, str(ENGINE), "--port", str(self.port), "--model", "org/theirs"]
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    made = Stranger()
    made.start()
    yield made
    made.end()


@pytest.mark.slow
def test_a_running_server_is_served_and_never_touched(
    make_room: RoomMaker, stranger: Stranger
) -> None:
    room = make_room(engine_url=stranger.url, engine_path=None, aliases=["ours"])
    room.start()
    assert room.ready["model"] == "theirs"
    for name in ("theirs", "ours"):
        answer = room.generate("Hi", max_new_tokens=2, model=name).json()
        assert (answer["generated_text"], answer["model"]) == ("w0 w1", name)
    row = room.engine("theirs-0")
    assert (row["plan"], row["pid"], row["url"]) == ("llama-cpp-external", None, stranger.url)
    stranger.end()
    until(lambda: room.engine("theirs-0")["state"] != "ready", 30, "its end is seen")
    stranger.start()
    room.wait_state("ready", "theirs-0")
    assert room.generate("Hi", max_new_tokens=2).status_code == 200
    assert room.stop() == 0
    assert stranger.process is not None
    assert stranger.process.poll() is None


def test_an_address_without_a_server_is_told(make_room: RoomMaker) -> None:
    port = free_ports(1)[0]
    room = make_room(engine_url=f"http://127.0.0.1:{port}", engine_path=None)
    process = room.launch()
    assert process.wait(30 * SLACK) != 0
    assert "is it running there?" in room.log.read_text()


def answering(body: bytes) -> tuple[HTTPServer, str]:
    """A server that says `body` to every GET."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"data": null}', "no list"),
        (b"null", "not answered as an OpenAI server"),
        (b"<html>", "not answered as an OpenAI server"),
        (b'{"data": [' + b'{"id": "x"},' * 200_000, "too long"),
        (b'{"data": [{"id": "' + b"a" * 1000 + b'"}]}', "no model with a usable name"),
        (b'{"data": [' + b'{"id": "m"},' * 50 + b'{"id": "n"}]}', "and 41 more"),
    ],
)
def test_a_server_that_lies_costs_one_sentence(body: bytes, words: str) -> None:
    server, url = answering(body)
    try:
        with pytest.raises(EngineRoomError, match=words):
            plan_of(url, "vllm", load_launcher("vllm"), None, None)
    finally:
        server.shutdown()
        server.server_close()


def test_a_context_that_no_server_has_is_not_believed() -> None:
    for told in ("true", "1e30", "-1", "1" + "0" * 30):
        server, url = answering(b'{"data": [{"id": "m", "max_model_len": %s}]}' % told.encode())
        try:
            assert plan_of(url, "vllm", load_launcher("vllm"), None, None).model.context_max == 4096
        finally:
            server.shutdown()
            server.server_close()
