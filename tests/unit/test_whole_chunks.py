"""A chunk that is known at a glance is taken as the parsers would have taken it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import RequestError
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.call import Call
from orchestrator.gateway.engine_connection import Address, EngineConnection
from orchestrator.gateway.guard import StreamGuard
from orchestrator.gateway.places import Lease, Line, Slot
from orchestrator.gateway.shapes import Passing
from tests.unit.test_routing import replica, table
from tests.unit.test_sse_and_stream import ANSWERS, BETWEEN, PAYLOADS, SCRIPTS, chunk, pieces, sent

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SIZES = st.sampled_from(["%x"] * 6 + ["%X", "0%x", "%x;a=b"])


class Wire:
    """Both a transport that nothing is written to, and a keeper of connections."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    close = abort

    def opened(self, connection: EngineConnection) -> None:
        pass

    free = closed = opened


class Client:
    """Keeps what it is told, without framing."""

    def __init__(self) -> None:
        self.out, self.end = b"", ""

    def relay(self, call: Call, data: bytes, framed: bool = False) -> None:
        assert not self.end
        self.out += data[data.index(b"\n") + 1 : -2] if framed else data

    def completed(self, call: Call) -> None:
        assert not self.end
        self.end = "completed"

    def failed(self, call: Call, error: RequestError) -> None:
        assert not self.end
        self.end = error.code

    def stale(self, call: Call, used: bool) -> None:
        self.end = "stale"


class Glancing:
    """Stands where a connection has its call; counts what that took at a glance."""

    def __init__(self, call: Call) -> None:
        self._call, self.glances = call, 0
        self.headed, self.received = call.headed, call.received
        self.ended, self.lost = call.ended, call.lost

    @property
    def connection(self) -> EngineConnection | None:
        return self._call.connection

    @connection.setter
    def connection(self, given: EngineConnection | None) -> None:
        self._call.connection = given

    def chunk(self, data: bytes) -> bool:
        taken = self._call.chunk(data)
        self.glances += taken
        return taken


class Parsing(Glancing):
    """Leaves everything to the parsers."""

    def chunk(self, data: bytes) -> bool:
        return False


def granted() -> Lease:
    """A lease of nobody's."""
    route = table(replica()).models[0]
    slot = Slot(route.replicas[0])
    return Lease(route, slot.replica, 0.0, Line(route), slot, Ask("m"), 0.0)


async def told(kind: type[Glancing], which: int, reads: list[bytes]) -> tuple[Any, int]:
    """What the client has and knows after an engine's reads, and how many were not parsed."""
    wire, client, lease, ticks = Wire(), Client(), granted(), itertools.count()
    connection = EngineConnection(wire, Address("engine", 1))
    connection.connection_made(wire)  # type: ignore[arg-type]
    guard, tally = StreamGuard(ANSWERS[which]()), lease.tally
    call = Call(client, lease, guard, 60.0, 60.0, lambda: float(next(ticks)))
    call.send(connection, b"")
    between = connection._call = kind(call)
    for each in reads:
        if not wire.aborted:
            connection.data_received(each)
    if not wire.aborted:
        connection.connection_lost(None)
    state = (guard.done, guard.begun, guard.events, guard.pieces, guard.finish_reason, guard.usage)
    solo = (tally.solo.tokens, tally.solo.seconds)
    said = (client.out, client.end, guard.full_text, wire.aborted)
    return (said, state, tally.owed, tally.relayed, solo), between.glances


def framed(body: bytes, size: str = "%x") -> bytes:
    return (size % len(body)).encode() + b"\r\n" + body + b"\r\n" if body else b""


@settings(max_examples=SCRIPTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    PAYLOADS,
    st.lists(BETWEEN, min_size=14, max_size=14),
    st.lists(SIZES, min_size=40, max_size=40),
    st.lists(st.integers(0, 4000), max_size=8),
    st.lists(st.integers(0, 4000), max_size=3),
    st.integers(0, len(ANSWERS) - 1),
    st.booleans(),
)
def test_reads_are_told_as_the_parser_tells_them(
    payloads: list[bytes],
    between: list[bytes],
    sizes: list[str],
    cuts: list[int],
    torn: list[int],
    which: int,
    whole: bool,
) -> None:
    events = [b"data: " + p + end for p, end in zip(payloads, between, strict=False)]
    bodies = pieces(b"".join(events), cuts) if cuts else events
    chunks = [framed(body, size) for body, size in zip(bodies, sizes, strict=False)]
    reads = [HEAD, *chunks, *([b"0\r\n\r\n"] if whole else [])]
    if torn:
        reads = pieces(b"".join(reads), [*torn, *itertools.accumulate(map(len, reads))])
    assert (
        asyncio.run(told(Glancing, which, reads))[0] == asyncio.run(told(Parsing, which, reads))[0]
    )


def test_usual_chunks_are_not_parsed_and_others_are() -> None:
    words = [framed(sent(chunk(f" {n}"))) for n in range(20)]
    reads = [HEAD, *words, framed(sent(chunk("", "stop"))), b"0\r\n\r\n"]
    assert isinstance(ANSWERS[0](), Passing)
    (said, *_), glances = asyncio.run(told(Glancing, 0, reads))
    assert glances == 19  # the first was learned from
    assert said[1] == "completed"
    assert said[0].count(b"data: ") == 21
    split = [HEAD, *(half for word in words for half in (word[:9], word[9:])), *reads[-2:]]
    (again, *_), glances = asyncio.run(told(Glancing, 0, split))
    assert (again, glances) == (said, 0)
