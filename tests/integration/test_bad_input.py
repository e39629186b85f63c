"""The bad-input matrix over real sockets: the stated answer, nothing for the engine, no 5xx."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from tests.bad_input import GOOD, HEAD, Case, cases, request
from tests.harness import SLACK, Room, fake_room, look, processes_of, until

pytestmark = pytest.mark.slow

ROWS = sorted({case.row for case in cases()}, key=lambda row: int(row[1:]))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server with short limits on how long a request may take to arrive."""
    folder = tmp_path_factory.mktemp("bad")
    made = fake_room(folder / "data", head_timeout_s=1, body_timeout_s=1.5).start()
    yield made
    made.close()
    assert processes_of(str(folder)) == []


def dial(room: Room) -> socket.socket:
    return socket.create_connection(("127.0.0.1", room.port), timeout=15 * SLACK)


def answers(conn: socket.socket, bodyless: bool = False) -> tuple[bytes, bool]:
    """What comes until the end of the connection, or until one whole answer; whether it ended."""
    got = b""
    conn.settimeout(15 * SLACK)
    while True:
        try:
            part = conn.recv(1 << 16)
        except ConnectionResetError:
            return got, True
        if not part:
            return got, True
        got += part
        head, end, body = got.partition(b"\r\n\r\n")
        whole = bodyless or len(body) >= _length(head)
        if end and b"connection: close" not in head.lower() and whole:
            return got, False


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def send(conn: socket.socket, data: bytes) -> None:
    """All of it, or as much as is taken before the server has had enough."""
    try:
        conn.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return


def engine_requests(room: Room) -> int:
    return int(look(f"{room.engine()['url']}/stats").json()["requests"])


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_refused_and_reaches_no_engine(room: Room, row: str) -> None:
    before = engine_requests(room)
    wrong = [told for case in cases() if case.row == row if (told := _judged(room, case))]
    assert wrong == []
    assert engine_requests(room) == before
    assert room.generate("x", max_new_tokens=1).status_code == 200


def _judged(room: Room, case: Case) -> str | None:
    """What is wrong with the answer to a case, in words; None where it is as it must be."""
    with dial(room) as conn:
        send(conn, case.sent)
        got, ended = answers(conn, bodyless=case.sent.startswith(b"HEAD"))
    head, _, body = got.partition(b"\r\n\r\n")
    line = head.split(b"\r\n")[0]
    name = f"{case.row} {case.name}"
    if not line.startswith(b"HTTP/1.1 ") or int(line.split()[1]) not in case.statuses:
        return f"{name}: {line!r} {body[:200]!r}"
    if case.closes and not ended:
        return f"{name}: the connection stays open"
    if body and case.code is not None and json.loads(body)["error"]["code"] != case.code:
        return f"{name}: {body[:200]!r}"
    if len(body) > 1000:
        return f"{name}: {len(body)} bytes are echoed"
    return None


def test_heads_and_bodies_that_never_end_are_given_up(room: Room) -> None:
    """B3, B4: what is sent does not matter, only that it is not all there in time."""
    whole = request(GOOD)
    half_head, half_body = whole[:30], whole[:-5]
    with dial(room) as conn:
        began = time.monotonic()
        send(conn, half_head)
        got, ended = answers(conn)
        assert ended
        assert 0.8 < time.monotonic() - began < 6 * SLACK
        assert got == b"" or b" 408 " in got
    with dial(room) as conn:
        began = time.monotonic()
        send(conn, half_body)
        got, ended = answers(conn)
        assert ended
        assert 1.2 < time.monotonic() - began < 6 * SLACK
        assert b" 408 " in got.split(b"\r\n")[0]


def test_a_trickle_does_not_keep_a_head_alive(room: Room) -> None:
    with dial(room) as conn:
        conn.settimeout(0.2)
        send(conn, b"POST /generate HTTP/1.1\r\n")

        def closed() -> bool:
            try:
                conn.sendall(b"x")
                return conn.recv(100) in (b"",)
            except TimeoutError:
                return False
            except OSError:
                return True

        until(closed, 6, "it is closed")


def test_pipelined_requests_are_answered_in_order(room: Room) -> None:
    """B9: and what follows `connection: close` is not."""
    paths = ["/health/live" if n % 2 else "/v1/models/nobody" for n in range(100)]
    with dial(room) as conn:
        send(conn, b"".join(request(b"", path, method="GET") for path in paths[:-1]))
        last = HEAD + b"connection: close\r\n"
        send(conn, request(b"", paths[-1], head=last, method="GET"))
        send(conn, request(b"", "/health/live", method="GET"))
        got = b""
        conn.settimeout(15 * SLACK)
        while part := conn.recv(1 << 16):
            got += part
    codes = [int(line.split()[1]) for line in got.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    codes += [
        int(part[9:12]) for line in got.split(b"\r\n") for part in [line[line.find(b"HTTP/1.1 ") :]]
        if line.find(b"HTTP/1.1 ") > 0
    ]  # fmt: skip
    assert sorted(codes) == [200] * 50 + [404] * 50


def test_generating_requests_may_be_pipelined(room: Room) -> None:
    with dial(room) as conn:
        send(conn, request(GOOD) * 3 + request(b"", "/health/live", method="GET"))
        got = b""
        conn.settimeout(15 * SLACK)
        while not got.endswith(b'{"status":"ok"}'):
            part = conn.recv(1 << 16)
            assert part, got
            got += part
    assert got.count(b'"generated_text"') == 3
    assert got.count(b"HTTP/1.1 200") == 4


def test_what_follows_the_last_answer_is_not_read(room: Room) -> None:
    """An answer that closes is the last one, whatever came with the request in the same packet."""
    before = engine_requests(room)
    text = request(GOOD, head=b"host: a\r\ncontent-type: text/plain\r\nconnection: close\r\n")
    with dial(room) as conn:
        send(conn, text + request(GOOD) * 3)
        got, ended = answers(conn)
        assert ended
        assert got.count(b"HTTP/1.1 ") == 1
    assert engine_requests(room) == before


def test_many_refusals_in_one_packet_are_all_answered(room: Room) -> None:
    with dial(room) as conn:
        send(conn, request(GOOD) + request(b"") * 400 + request(b"", "/health/live", method="GET"))
        got = b""
        conn.settimeout(15 * SLACK)
        while not got.endswith(b'{"status":"ok"}'):
            part = conn.recv(1 << 16)
            assert part, got[-300:]
            got += part
    assert got.count(b"HTTP/1.1 400") == 400


def test_a_large_body_is_no_large_head(room: Room) -> None:
    large = request({**GOOD, "prompt": "x" * 66_000})
    with dial(room) as conn:
        send(conn, large + request(GOOD)[:40])
        got, _ = answers(conn)
        assert got.startswith(b"HTTP/1.1 200"), got
        send(conn, request(GOOD)[40:])
        got, _ = answers(conn)
        assert got.startswith(b"HTTP/1.1 200"), got


def test_an_upgrade_behind_another_request_is_a_request_of_its_own(room: Room) -> None:
    before = engine_requests(room)
    h2c = HEAD + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
    with dial(room) as conn:
        send(conn, request({**GOOD, "stream": True}) + request(GOOD, head=h2c))
        got = b""
        conn.settimeout(15 * SLACK)
        while part := conn.recv(1 << 16):
            got += part
    assert got.count(b"HTTP/1.1 200") == 2
    assert got.count(b"[DONE]") == 1
    assert engine_requests(room) == before + 2
    until(lambda: room.model()["in_flight"] == 0, 5, "nothing is held")
    chunked = h2c + b"transfer-encoding: chunked\r\n"
    with dial(room) as conn:
        send(conn, request(b"0\r\n\r\n", head=chunked, length=b""))
        got, ended = answers(conn)
    assert ended
    assert got.startswith(b"HTTP/1.1 400")


def test_an_upgrade_to_http2_is_not_made(room: Room) -> None:
    """B34: clients ask for it with every request; what they want answered is answered."""
    h2c = HEAD + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    with dial(room) as conn:
        send(conn, request(GOOD, head=h2c))
        got, _ = answers(conn)
    assert got.startswith(b"HTTP/1.1 200")


def test_a_body_is_waited_for_where_the_client_waits_for_a_word(room: Room) -> None:
    data = json.dumps(GOOD).encode()
    with dial(room) as conn:
        whole = request(data, head=HEAD + b"expect: 100-continue\r\n")
        send(conn, whole[: -len(data)])
        conn.settimeout(15 * SLACK)
        assert conn.recv(1 << 16).startswith(b"HTTP/1.1 100")
        send(conn, data)
        got, _ = answers(conn)
    assert got.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("value", ["a\tb", "x" * 500, "é", "<b>"])
def test_request_ids_are_replaced_where_they_are_odd(room: Room, value: str) -> None:
    """B10: they end up in logs and in other systems."""
    sent = {"x-request-id": value.encode()}
    told = room.http.get(f"{room.url}/health/live", headers=sent).headers["x-request-id"]  # type: ignore[arg-type]
    assert told != value
    assert 8 <= len(told) <= 64
    good = {"x-request-id": "abc-123"}
    assert room.http.get(f"{room.url}/health/live", headers=good).headers["x-request-id"] == (
        "abc-123"
    )
