"""The bad-input matrix of the gateway as data: what is sent, and what must come back.

A case that names a status must be answered with it and, where `closes`, with the end of the
connection. None of them may reach an engine, and none is answered 5xx.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HEAD = b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"
GOOD: dict[str, Any] = {"prompt": "x", "max_new_tokens": 1}
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
PLAIN: dict[str, Any] = {"model": "demo", "prompt": "x"}


@dataclass(frozen=True)
class Case:
    """One request. `code` is the error's code where the answer has a body of ours."""

    row: str
    name: str
    sent: bytes
    statuses: tuple[int, ...]
    code: str | None = None
    closes: bool = False


def request(
    body: bytes | object,
    path: str = "/generate",
    head: bytes = HEAD,
    method: str = "POST",
    length: bytes | None = None,
) -> bytes:
    """A request as bytes, with a length header unless told otherwise."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = b"content-length: %d\r\n" % len(data) if length is None else length
    return f"{method} {path} HTTP/1.1\r\n".encode() + head + size + b"\r\n" + data


def cases() -> Iterator[Case]:
    """Every case of rows B1 to B34 that one request makes up."""
    yield from _heads()
    yield from _framing()
    yield from _hosts()
    yield from _kinds()
    yield from _documents()
    yield from _values()
    yield from _openai_values()
    yield from _other_apis()
    yield from _doors()


def _heads() -> Iterator[Case]:
    for size in (64 << 10, 1 << 20, 20 << 20):
        head = HEAD + b"x-much: " + b"a" * size + b"\r\n"
        yield Case("B1", f"{size} bytes", request(GOOD, head=head), (431,), closes=True)
    for count in (101, 50_000):
        head = HEAD + b"".join(b"x-%d: a\r\n" % n for n in range(count))
        yield Case("B2", f"{count} fields", request(GOOD, head=head), (431,), closes=True)
    long = request(GOOD, path="/generate?" + "a" * 40_000)
    yield Case("B1", "a long target", long, (414, 431), closes=True)


def _framing() -> Iterator[Case]:
    data = json.dumps(GOOD).encode()
    size = b"content-length: %d\r\n" % len(data)
    chunked = b"transfer-encoding: chunked\r\n"
    once = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    lengths = {
        "both": size + chunked,
        "both, turned": chunked + size,
        "length twice": size * 2,
        "two lengths": size + b"content-length: 3\r\n",
        "a list of lengths": b"content-length: 3, 3\r\n",
        "xchunked": b"transfer-encoding: xchunked\r\n",
        "chunked, identity": b"transfer-encoding: chunked, identity\r\n",
        "gzip, chunked": b"transfer-encoding: gzip, chunked\r\n",
        "chunked twice": chunked * 2,
    }
    for name, length in lengths.items():
        sent = request(data, length=length) + (once if b"chunked" in length else b"")
        yield Case("B6", name, sent, (400, 501), closes=True)
    heads = {
        "bare LF": b"x-a: b\n",
        "obs-fold": b"x-a: b\r\n c\r\n",
        "space before the colon": b"x-a : b\r\n",
        "NUL": b"x-a: b\0c\r\n",
        "bare CR": b"x-a: b\rc\r\n",
        "no name": b": b\r\n",
    }
    for name, field in heads.items():
        yield Case("B7", name, request(GOOD, head=HEAD + field), (400,), closes=True)
    for given in (b"+3", b"-1", b"0x3", b"3 3", b"", b"9" * 30):
        length = b"content-length: " + given + b"\r\n"
        yield Case("B7", f"length {given!r}", request(data, length=length), (400, 413), closes=True)
    for name, body in {
        "0x size": b"0x3\r\nabc\r\n0\r\n\r\n",
        "no CRLF after a chunk": b"3\r\nabcXX0\r\n\r\n",
        "bare LF in a chunk": b"3\nabc\n0\n\n",
        "a negative chunk": b"-3\r\nabc\r\n0\r\n\r\n",
    }.items():
        yield Case("B7", name, request(body, length=chunked), (400,), closes=True)
    for name, line in {
        "nonsense": b"NONSENSE\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/0.9": b"GET /health\r\n\r\n",
        "HTTP/1.2": b"GET /health HTTP/1.2\r\nhost: a\r\n\r\n",
        "a space in the target": b"GET /health x HTTP/1.1\r\nhost: a\r\n\r\n",
    }.items():
        yield Case("B7", name, line, (400, 405, 505), closes=True)


def _hosts() -> Iterator[Case]:
    kind = b"content-type: application/json\r\n"
    for name, host in {
        "none": b"",
        "two": b"host: a\r\nhost: b\r\n",
        "the same twice": b"host: a\r\nhost: a\r\n",
        "a path in it": b"host: a/health?x=\r\n",
        "userinfo": b"host: a@b\r\n",
        "not ASCII": b"host: \xc3\xa9\r\n",
        "a space": b"host: a b\r\n",
        "a port that is none": b"host: a:99999999\r\n",
    }.items():
        yield Case("B8", name, request(GOOD, head=host + kind), (400,), closes=True)
    for target in ("http://evil/admin", "http://127.0.0.1/generate", "*", "generate", "?a"):
        yield Case("B8", f"target {target}", request(GOOD, path=target), (400, 404))


def _kinds() -> Iterator[Case]:
    host = b"host: a\r\n"
    for kind in (
        b"text/plain",
        b"",
        b"application/json;charset=utf-16",
        b"multipart/form-data; boundary=x",
        b"application/jsonx",
    ):
        head = host + b"content-type: " + kind + b"\r\n"
        yield Case("B11", repr(kind), request(GOOD, head=head), (415,), "unsupported_media_type")
    yield Case("B11", "none", request(GOOD, head=host), (415,), "unsupported_media_type")
    utf16 = "charset=utf-16"
    yield Case("B11", utf16, request(json.dumps(GOOD).encode("utf-16")), (400,), "invalid_request")
    for coding in (b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip"):
        head = HEAD + b"content-encoding: " + coding + b"\r\n"
        yield Case("B12", repr(coding), request(GOOD, head=head), (415,), "unsupported_media_type")


def _documents() -> Iterator[Case]:
    bad = (400, 422)
    good = json.dumps(GOOD).encode()
    for data in (b"", b"null", b"[]", b'"x"', b"{}", good * 2, good + b"x", b"\xef\xbb\xbf" + good):
        yield Case("B13", repr(data[:20]), request(data), bad, "invalid_request")
    for text in (b'"\xff"', b'"\xc0\xaf"', b'"\\ud800"', b'"\xed\xa0\x80"'):
        data = b'{"prompt": ' + text + b"}"
        yield Case("B14", repr(text), request(data), bad, "invalid_request")
    yield Case("B15", "NUL", request({"prompt": "a\0b"}), bad, "invalid_request")
    for number in ("NaN", "Infinity", "-Infinity", "1e400"):
        data = b'{"prompt": "x", "temperature": %b}' % number.encode()
        yield Case("B16", number, request(data), bad, "invalid_request")
    for field, number in (
        ("max_new_tokens", "9" * 5000),
        ("max_new_tokens", "1.0"),
        ("max_new_tokens", '"5"'),
        ("max_new_tokens", "true"),
        ("do_sample", "1"),
        ("prompt", "5"),
    ):
        data = f'{{"prompt": "x", "{field}": {number}}}'.encode()
        yield Case("B17", f"{field} {number[:8]}", request(data), bad, "invalid_request")
    for depth in (200, 2000, 100_000):
        data = b'{"prompt": "x", "stop": ' + b"[" * depth + b"]" * depth + b"}"
        yield Case("B18", str(depth), request(data), bad, "invalid_request")
    twice = b'{"prompt": "x", "model": "a", "model": "demo"}'
    yield Case("B19", "a key twice", request(twice), bad, "invalid_request")
    keys = {**GOOD, **{f"k{n}": 1 for n in range(100_000)}}
    yield Case("B20", "100,000 keys", request(keys), (400, 413))
    yield Case("B20", "a million items", request({**GOOD, "stop": [1] * 1_000_000}), (400, 413))
    many = {**CHAT, "messages": CHAT["messages"] * 10_000}
    yield Case("B20", "10,000 messages", request(many, "/v1/chat/completions"), bad)


def _values() -> Iterator[Case]:
    for field, value in (
        ("wat", 1),
        ("n_discard", -5),
        ("chat_template", "{{ x }}"),
        ("grammar", "root ::= root"),
        ("cache_prompt", True),
        ("id_slot", 0),
        ("max_tokens", 5),
    ):
        sent = request({**GOOD, field: value})
        yield Case("B21", field, sent, (400,), "unsupported_parameter")
    for name in (
        "nobody", "", "m" * 10_000, "../../etc/passwd", "..%2f..", "%00", "C:\\", "dem\u043e",
        "demo ", "demo\r\nx: y",
    ):  # fmt: skip
        sent = request({**GOOD, "model": name})
        yield Case("B22", repr(name[:20]), sent, (404,), "model_not_found")
    values: list[tuple[str, object]] = [
        ("max_new_tokens", -1),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**9),
        ("temperature", -1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("repetition_penalty", 0),
        ("seed", 2**64),
        ("seed", -1),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("stop", "a" * (1 << 20)),
        ("stop", 5),
        ("prompt", ""),
        ("prompt", ["x"] * 1000),
        ("keep_alive", "soon"),
    ]
    for field, given in values:
        row = {"max_new_tokens": "B23", "stop": "B25", "prompt": "B27"}.get(field, "B24")
        sent = request({**GOOD, field: given})
        yield Case(row, f"{field} {given!r:.20}", sent, (400,), "invalid_request")
    yield Case("B27", "too long", request({"prompt": "word " * 60_000}), (400, 413))


def _openai_values() -> Iterator[Case]:
    def plain(row: str, field: str, value: object, code: str | None = None) -> Case:
        sent = request({**PLAIN, field: value}, "/v1/completions")
        return Case(row, f"{field} {value!r:.20}", sent, (400,), code)

    def chat(row: str, field: str, value: object, code: str | None = None) -> Case:
        sent = request({**CHAT, field: value}, "/v1/chat/completions")
        return Case(row, f"chat {field} {value!r:.20}", sent, (400,), code)

    for count in (0, 9, 16384, 10**6):
        yield plain("B26", "n", count)
    values: list[tuple[str, object]] = [
        ("best_of", 5),
        ("logprobs", 10**6),
        ("logit_bias", {str(n): 1 for n in range(100_000)}),
        ("stop_token_ids", [-1]),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
    ]
    for field, given in values:
        yield plain("B26", field, given)
    both = {**CHAT, "max_tokens": 1, "max_completion_tokens": 1}
    yield Case("B23", "two limits", request(both, "/v1/chat/completions"), (400,))
    prompts: list[object] = [[-1], [1, 2, 3], [10**9], ["a", "b"], [["a"]], None]
    for prompt in prompts:
        yield plain("B27", "prompt", prompt)
    bomb: Any = {"type": "object"}
    for _ in range(40):
        bomb = {"type": "object", "properties": {"a": bomb}}
    huge = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"d": "y" * (1 << 20)}}}
    for schema in (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": bomb}},
        huge,
        {"type": "grammar", "grammar": "root ::= root"},
        {"type": "regex", "pattern": "(a+)+$"},
        "json",
    ):
        yield chat("B28", "response_format", schema)
    for url in ("http://169.254.169.254/", "file:///etc/passwd", "data:image/svg+xml;base64,AA=="):
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        yield chat("B29", "messages", [{"role": "user", "content": parts}])
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    odd = {"type": "function", "function": {"name": "a b"}}
    lists: list[object] = [[tool] * 1000, [odd], [{}], "f"]
    for tools in lists:
        yield chat("B30", "tools", tools)
    lists = [[], "x", [{"role": "wizard", "content": "x"}], [{"role": "user"}]]
    for messages in lists:
        yield chat("B30", "messages", messages)


def _other_apis() -> Iterator[Case]:
    """The same rows for the APIs that are not OpenAI's first; the fake engine has none of them."""
    lists: list[tuple[str, object]] = [
        ("num_predict", [1]), ("num_predict", {}), ("num_predict", "many"), ("num_predict", 0),
        ("temperature", "hot"), ("top_k", -1), ("seed", 2**64), ("stop", [""]), ("sparkle", 1),
    ]  # fmt: skip
    for name, value in lists:
        sent = {"model": "demo", "prompt": "x", "options": {name: value}}
        yield Case("B24", f"ollama {name} {value!r:.9}", request(sent, "/api/generate"), (400,))
    fields: list[tuple[str, object]] = [
        ("images", ["aGk="]), ("suffix", "x"), ("think", True), ("format", "xml"), ("wat", 1),
        ("keep_alive", "\u0661m"),
        ("options", []), ("prompt", 5), ("keep_alive", "soon"), ("context", [1]),
    ]  # fmt: skip
    for name, value in fields:
        body: dict[str, object] = {"model": "demo", "prompt": "x", name: value}
        yield Case("B21", f"ollama {name}", request(body, "/api/generate"), (400,))
    for name in ("nobody", "../../etc/passwd", "demo:7b", "m" * 10_000):
        for path in ("/api/generate", "/api/show"):
            asks = {"model": name, "prompt": "x"} if path == "/api/generate" else {"model": name}
            yield Case("B22", f"{path} {name:.9}", request(asks, path), (404,))
    whole = {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    for path, good in (("/v1/messages", whole), ("/v1/responses", {"input": "x"})):
        for name, value in (("model", 5), ("wat", 1), ("temperature", "hot"), ("stream", 1)):
            yield Case("B24", f"{path} {name}", request({**good, name: value}, path), (400,))
        yield Case("B13", path, request(b"[]", path), (400,))
        yield Case("B19", path, request(b'{"a": 1, "a": 2}', path), (400,))
        yield Case("B22", path, request({**good, "model": "nobody"}, path), (404,))
    image = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}
    asked = {**whole, "messages": [{"role": "user", "content": [image]}]}
    yield Case("B29", "an image in a message", request(asked, "/v1/messages"), (400,))
    file = [{"role": "user", "content": [{"type": "input_file", "file_url": "file:///etc/passwd"}]}]
    yield Case("B29", "a file in an input", request({"input": file}, "/v1/responses"), (400,))


def _doors() -> Iterator[Case]:
    for method in ("TRACE", "DELETE", "PUT", "GET", "HEAD", "OPTIONS", "PATCH"):
        yield Case("B32", method, request(b"", method=method), (405,))
    yield Case("B32", "FOO", request(b"", method="FOO"), (400, 405), closes=True)
    connect = b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: 127.0.0.1:80\r\n\r\n"
    yield Case("B32", "CONNECT", connect, (400, 404, 405), closes=True)
    for path in (
        "//generate", "/./generate", "/models/..;/admin", "/Generate", "/generate/",
        "/generate;a=b", "/v1//completions", "/admin", "/admin/models", "/%67enerate",
        "/v1%2fcompletions",
    ):  # fmt: skip
        yield Case("B33", path, request(GOOD, path=path), (404,))
    web = HEAD + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    yield Case("B34", "websocket", request(b"", head=web, method="GET"), (400, 405))
    expect = HEAD + b"expect: 100-continue\r\n"
    huge = request(b"", head=expect, length=b"content-length: 99999999999\r\n")
    yield Case("B34", "much expected", huge, (413, 417), closes=True)
    odd = HEAD + b"expect: 200-ok\r\n"
    yield Case("B34", "something else expected", request(GOOD, head=odd), (400, 417))
