"""Which parts of a container's output are written, and that following it always ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.runtimes.docker.connection import Connection
from orchestrator.runtimes.docker.logs import Follower, Mark
from orchestrator.runtimes.shim.output import Output
from tests.harness import SLACK, until


def written(mark: Mark, *times: str) -> list[str]:
    return [when for when in times if mark.is_new(when)]


def test_a_line_in_parts_has_one_time_and_is_written_whole() -> None:
    assert written(Mark(), "1", "2", "2", "2", "3") == ["1", "2", "2", "2", "3"]


def test_a_line_that_comes_after_a_later_one_is_written() -> None:
    assert written(Mark(), "1", "3", "2", "3", "4") == ["1", "3", "2", "3", "4"]


def test_what_was_written_before_is_left_out_part_by_part() -> None:
    first = Mark()
    written(first, "1", "2", "2")
    again = Mark(str(first))
    assert written(again, "1", "2", "2", "2", "3") == ["2", "3"]
    again.resume()
    assert written(again, "2", "3", "4") == ["4"]


class Silent:
    """A stream on which nothing comes until it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self.closed.wait()
        return iter(())

    def close(self) -> None:
        self.closed.set()


class Slow(Connection):
    """A Docker Engine that opens the stream only when its reader is being closed."""

    def __init__(self, closing: threading.Event) -> None:
        self.asked, self._closing = threading.Event(), closing

    @contextmanager
    def asking(self) -> Iterator[Any]:
        yield self

    def logs(self, id: str, **asked: Any) -> Silent:
        """As the client library has it."""
        self.asked.set()
        assert self._closing.wait(10 * SLACK)
        return Silent()


def test_a_stream_that_opens_while_it_is_closed_holds_nobody(tmp_path: Path) -> None:
    closing = threading.Event()
    slow = Slow(closing)
    follower = Follower(slow, "x", Output(str(tmp_path / "log"), 1 << 20, 1), tmp_path)
    assert slow.asked.wait(10 * SLACK)
    ends = threading.Thread(target=follower.close)
    ends.start()
    until(lambda: follower._stream.ended, 10, "its end is asked for")
    closing.set()
    ends.join(10 * SLACK)
    follower._thread.join(10 * SLACK)
    assert not follower._thread.is_alive()
