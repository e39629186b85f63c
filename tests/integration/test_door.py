"""The protocol below the framework: what clients may do with a connection, seen over sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import httpx
import pytest

from tests.harness import SLACK, until
from tests.stage import Stage, staged
from tests.streams import events_of, request_bytes, told

LIMIT = 4096


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    knobs = ["--tps", "200", "--usage-in-stream"]
    with staged(knobs, max_body_bytes=LIMIT, stream_comment_s=0.3, stall_timeout_s=2) as made:
        yield made


def connect(stage: Stage) -> socket.socket:
    return socket.create_connection(
        ("127.0.0.1", int(stage.url.rsplit(":", 1)[1])), timeout=10 * SLACK
    )


def exchange(stage: Stage, data: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    with closing(connect(stage)) as conn:
        conn.sendall(data)
        got = b""
        while part := conn.recv(65536):
            got += part
        return got


def lasting(path: str, body: bytes, more: str = "") -> bytes:
    """A request whose connection goes on."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def body(prompt: str, **fields: object) -> bytes:
    return json.dumps({"prompt": prompt, "max_new_tokens": 2, **fields}).encode()


# --- one request after another ------------------------------------------------------------------


def test_pipelined_requests_of_both_kinds_are_answered_in_their_order(stage: Stage) -> None:
    data = b""
    for i in range(20):
        data += lasting("/generate", body(f"echo=n{i}"))
        data += b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
        data += lasting("/generate_stream", body(f"echo=s{i}", max_new_tokens=1))
    data += request_bytes("echo=last", max_new_tokens=1)
    got = exchange(stage, data).decode()
    assert got.count("HTTP/1.1 200") == 61
    order = [got.index(f"{kind}{i}") for i in range(20) for kind in ("n", "s")]
    assert order == sorted(order)
    assert got.index("last") > order[-1]


def test_a_connection_serves_on_after_an_error_and_closes_when_it_is_told_to(stage: Stage) -> None:
    bad = lasting("/generate", b"{")
    got = exchange(stage, bad + lasting("/generate", body("x")) + request_bytes("y"))
    assert [each[:3] for each in got.split(b"HTTP/1.1 ")[1:]] == [b"400", b"200", b"200"]
    assert got.count(b"connection: close") == 1


def test_a_body_in_many_pieces_is_one_body(stage: Stage) -> None:
    text = body("echo=piece")
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n"
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    with closing(connect(stage)) as conn:
        for at in range(0, len(head + chunks), 7):
            conn.sendall((head + chunks)[at : at + 7])
        got = b""
        while part := conn.recv(65536):
            got += part
    assert b"piece piece" in got


def test_older_clients_get_whole_answers_and_streams_that_end_with_the_connection(
    stage: Stage,
) -> None:
    old = lasting("/generate", body("echo=old")).replace(b"HTTP/1.1", b"HTTP/1.0")
    got = exchange(stage, old)
    assert b"old old" in got
    assert b"connection: close" in got
    stream = lasting("/generate_stream", body("Hi")).replace(b"HTTP/1.1", b"HTTP/1.0")
    head, _, events = exchange(stage, stream).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    payloads = [line[6:] for line in events.decode().splitlines() if line.startswith("data: ")]
    assert told(payloads).finished
    assert events.endswith(b"data: [DONE]\n\n")


def test_a_client_that_asks_first_is_told_to_go_on_or_why_not(stage: Stage) -> None:
    text = body("echo=late")
    asking = lasting("/generate", text, "expect: 100-continue\r\n").removesuffix(text)
    with closing(connect(stage)) as conn:
        conn.sendall(asking)
        assert conn.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        conn.sendall(text)
        assert b"late late" in conn.recv(65536)
    large = asking.replace(b"content-length: ", b"content-length: 99")
    got = exchange(stage, large)
    assert got.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in got


# --- what is no request -------------------------------------------------------------------------

HEAD = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
GOOD = body("never")
LENGTH = b"content-length: %d\r\n" % len(GOOD)
EMPTY = b"connection: close\r\ncontent-length: 0\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (HEAD.replace(b"host: x\r\n", b"") + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD + b"host: y\r\n" + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD.replace(b"host: x", b"host: a/health?x=") + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD.replace(b"host: x", b"host: u@x") + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD.replace(b"/generate", b"http://x/generate") + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD + LENGTH + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD + LENGTH + b"content-length: 3\r\n\r\n" + GOOD, 400),
        (HEAD + LENGTH + b"transfer-encoding: chunked\r\n\r\n" + CHUNKED, 400),
        (HEAD + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKED, 400),
        (HEAD + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKED, 400),
        (HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNKED, 400),
        (HEAD + b"content-length: +3\r\n\r\nabc", 400),
        (HEAD + b"content-length: 0x3\r\n\r\nabc", 400),
        (HEAD + b"x y: z\r\n" + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD + b"x : z\r\n" + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD + b"x: a\0b\r\n" + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
        (HEAD + b"authorization: a\r\nauthorization: b\r\n" + LENGTH + b"\r\n" + GOOD, 400),
        (HEAD + b"x: y\r\n" * 101 + LENGTH + b"\r\n" + GOOD, 431),
        (HEAD + b"x: " + b"y" * 70_000 + b"\r\n" + LENGTH + b"\r\n" + GOOD, 431),
        (HEAD + b"x: " + b"y" * 2_000_000, 431),
        (HEAD + b"content-length: 5000\r\n\r\n", 413),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 2_000_000, 413),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n2000\r\n" + b" " * 0x2000, 413),
        (HEAD.replace(b"application/json", b"text/plain") + LENGTH + b"\r\n" + GOOD, 415),
        (HEAD + b"content-encoding: gzip\r\n" + LENGTH + b"connection: close\r\n\r\n" + GOOD, 415),
        (HEAD.replace(b"POST", b"TRACE") + b"connection: close\r\n" + LENGTH + b"\r\n" + GOOD, 405),
        (HEAD.replace(b"/generate", b"/generate/") + EMPTY, 404),
        (HEAD.replace(b"/generate", b"//generate") + EMPTY, 404),
    ],
)  # fmt: skip
def test_what_is_in_doubt_is_refused_and_never_reaches_an_engine(
    stage: Stage, data: bytes, status: int
) -> None:
    before = stage.engines[0].stats()["requests"]
    with closing(connect(stage)) as conn:
        with suppress(ConnectionError):  # it may have heard enough
            conn.sendall(data)
        if status == 415 and b"close" not in data:
            conn.shutdown(socket.SHUT_WR)
        got = b""
        while part := conn.recv(65536):
            got += part
    assert got.startswith(b"HTTP/1.1 %d" % status), got[:200]
    assert got.count(b"HTTP/1.1") == 1
    assert b'"error"' in got
    assert stage.engines[0].stats()["requests"] == before


def test_a_head_without_end_behind_a_running_request_ends_both(stage: Stage) -> None:
    first = lasting("/generate_stream", body("Hi", max_new_tokens=500))
    with closing(connect(stage)) as conn, suppress(ConnectionError):
        conn.sendall(first + HEAD + b"x: ")
        for _ in range(40):
            conn.sendall(b"y" * 65_536)
        while conn.recv(65536):
            pass
    until(lambda: stage.engines[0].stats()["running"] == 0, 10, "the engine is free")


def test_a_path_is_spelled_as_it_is(stage: Stage) -> None:
    """A query changes nothing; percent signs would let one path look like another on the way."""

    def post(path: str) -> httpx.Response:
        headers = {"content-type": "application/json; charset=utf-8"}
        return stage.http.post(stage.url + path, content=body("x"), headers=headers)

    assert post("/generate?x=1").json()["token_count"] == 2
    assert post("/%67enerate").status_code == 404


# --- comments -----------------------------------------------------------------------------------


def lines_of(stage: Stage, prompt: str, **fields: object) -> list[str]:
    asked = {"prompt": prompt, "max_new_tokens": 2, **fields}
    with stage.http.stream("POST", f"{stage.url}/generate_stream", json=asked) as answer:
        assert answer.status_code == 200, answer.read()
        return [line for line in answer.iter_lines() if line]


def test_comments_keep_a_stream_alive_and_an_error_after_them_is_an_event(stage: Stage) -> None:
    lines = lines_of(stage, "Hi fake=" + json.dumps({"prefill_s": 0.9}))
    assert lines[:2] == [": keep-alive"] * 2
    payloads = [line[6:] for line in lines if line.startswith("data: ")]
    assert told(payloads).finished
    silent = "Hi fake=" + json.dumps({"hang_after_tokens": 0})
    lines = lines_of(stage, silent)
    assert lines[0] == ": keep-alive"
    payloads = [line[6:] for line in lines if line.startswith("data: ")]
    assert told(payloads).errors == ("engine_stalled",)
    assert len(payloads) == 1
    assert stage.ask(silent).status_code == 504  # a plain answer has no comments


def test_an_error_before_the_first_comment_is_a_status(stage: Stage) -> None:
    assert stage.ask("Hi").status_code == 200  # what broke before has rested
    asked = {"prompt": "Hi fake=" + json.dumps({"status": 500})}
    status, _ = events_of(stage.http, f"{stage.url}/generate_stream", asked)
    assert status == 502


def test_after_an_error_event_nothing_follows(stage: Stage) -> None:
    broken = body("Hi fake=" + json.dumps({"error_after_tokens": 1}), max_new_tokens=4)
    got = exchange(stage, lasting("/generate_stream", broken, "connection: close\r\n"))
    assert got.count(b'"error"') == 1
    assert got.endswith(b"\n\n\r\n0\r\n\r\n")
    assert b"[DONE]" not in got


def test_engines_are_idle_when_all_is_over(stage: Stage) -> None:
    until(lambda: stage.engines[0].stats()["running"] == 0, 5, "the engine is idle")
    until(lambda: stage.metric("engineroom_in_flight", model="m") == 0, 5, "no lease is held")
