"""A server that somebody else runs, given by its address."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Room, free_ports, until

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
    assert process.wait(30) != 0
    assert "is it running there?" in room.log.read_text()
