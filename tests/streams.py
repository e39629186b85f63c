"""What came over a stream, against what the fake engine sent: "w0", " w1", … are its sequence.

And a client that costs little: hundreds of requests at once from one thread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Told:
    """One stream as its client saw it: numbers of the tokens in their order, and how it ended."""

    tokens: tuple[int, ...] = ()
    finished: bool = False
    """A finish reason came, and `[DONE]` as the last event."""
    errors: tuple[str, ...] = ()
    """The codes of its error events."""
    after_end: int = 0
    """Events after `[DONE]` or after an error."""

    def lost(self, n: int) -> list[int]:
        """Tokens of the first `n` that never came, up to the last that did."""
        last = max(self.tokens, default=-1)
        return [i for i in range(min(n, last + 1)) if i not in self.tokens]

    def duplicated(self) -> list[int]:
        """Tokens that came more than once."""
        return [i for i, times in Counter(self.tokens).items() if times > 1]

    def truncated(self, n: int) -> int:
        """How many of `n` tokens are missing at the end."""
        return max(0, n - 1 - max(self.tokens, default=-1))

    def in_order(self) -> bool:
        return list(self.tokens) == sorted(self.tokens)


def told(events: Iterable[str]) -> Told:
    """Read the data payloads of a stream of `/generate_stream` or of the OpenAI paths."""
    words: list[int] = []
    errors: list[str] = []
    finished = done = False
    after_end = 0
    for payload in events:
        after_end += done or bool(errors)
        if payload == "[DONE]":
            done = True
            continue
        event = json.loads(payload)
        if "error" in event:
            errors.append(event["error"]["code"])
            continue
        finished = finished or bool(event.get("done")) or _finish(event)
        words += [int(word[1:]) for word in _text(event).split()]
    return Told(tuple(words), finished and done and not errors, tuple(errors), after_end)


def _finish(event: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in event.get("choices", ()))


def _text(event: dict[str, Any]) -> str:
    if "choices" not in event:
        return str(event.get("token", ""))
    parts = [(c.get("delta") or {}).get("content") or c.get("text") or "" for c in event["choices"]]
    return "".join(parts)


def check_stream(events: Iterable[str], n: int) -> Told:
    """Hold a stream against the `n` tokens it must have: none lost, doubled, cut, none too many.

    AssertionError says which; the stream as it came otherwise.
    """
    came = told(events)
    wrong = {
        "lost": came.lost(n),
        "duplicated": came.duplicated(),
        "truncated": came.truncated(n),
        "beyond the end": [i for i in came.tokens if i >= n],
        "out of order": [] if came.in_order() else list(came.tokens),
        "errors": list(came.errors),
        "after the end": came.after_end,
        "unfinished": not came.finished,
    }
    wrong = {name: value for name, value in wrong.items() if value}
    assert not wrong, f"stream of {n} tokens: {wrong}"
    return came


def events_of(http: httpx.Client, url: str, body: dict[str, Any]) -> tuple[int, list[str]]:
    """Status, and the data payloads of a stream (or the error body as the only one)."""
    with http.stream("POST", url, json=body) as answer:
        if answer.status_code != 200:
            return answer.status_code, [answer.read().decode()]
        return 200, [x[6:] for x in answer.iter_lines() if x.startswith("data: ")]


@dataclass
class Answer:
    """One answer: its status, headers in lower case, body, and when it came."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0

    @property
    def code(self) -> str:
        """The code of an error body, empty for anything else."""
        value = json.loads(self.body or b"{}")
        return str(value["error"]["code"]) if "error" in value else ""


def request_bytes(prompt: str, path: str = "/generate", **fields: Any) -> bytes:
    """One request as it goes over the wire; the connection is closed after it."""
    return post_bytes(path, {"prompt": prompt, **fields})


def post_bytes(path: str, asked: dict[str, Any]) -> bytes:
    """The same, of any body."""
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(
    port: int,
    data: bytes,
    sent: asyncio.Event | None = None,
    begun: asyncio.Event | None = None,
) -> Answer:
    """Send one request on a connection of its own and read all of the answer.

    `sent` and `begun` are set when the request is on its way, and at the answer's first byte.
    """
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        if sent is not None:
            sent.set()
        first = await reader.read(1)
        if begun is not None:
            begun.set()
        return parse(first + await reader.read(), time.monotonic() - began)
    finally:
        writer.close()


def parse(raw: bytes, seconds: float) -> Answer:
    """A whole answer as it came over the wire; status 0 for none."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1.1 "):
        return Answer(0, seconds=seconds)
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Answer(int(lines[0].split()[1]), headers, body, seconds)
