"""Long greedy streams of real engines, which tell each its own whole text or how it broke."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx

from tests.harness import Room, until

PROMPT = "Tell me a long story about the shop."
TOKENS = 150


def story(
    room: Room, tokens: int = TOKENS, begun: Callable[[], object] = lambda: None
) -> list[str]:
    """The data payloads of one stream, over a connection of its own; `begun` at its first token."""
    body = {"prompt": PROMPT, "max_new_tokens": tokens, "do_sample": False}
    payloads: list[str] = []
    with (
        httpx.Client(timeout=300, trust_env=False, verify=False) as client,
        client.stream("POST", f"{room.url}/generate_stream", json=body) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                payloads.append(line[6:])
                begun()
    return payloads


def running(
    room: Room, many: ThreadPoolExecutor, count: int, tokens: int = TOKENS
) -> list[Future[list[str]]]:
    """So many stories at once; each of them has its first token.

    That they are at the engine would not do: what ends it before a first token is a status.
    """
    begun = [threading.Event() for _ in range(count)]
    streams = [many.submit(story, room, tokens, each.set) for each in begun]
    until(lambda: all(each.is_set() for each in begun) or _failed(streams), 120, "they run")
    return streams


def _failed(streams: list[Future[list[str]]]) -> bool:
    return any(each.done() and each.exception() for each in streams)


def nearly_loaded(room: Room, old: Collection[int]) -> bool:
    """Whether an engine that is none of `old` is about to serve, or does."""
    fresh = [row for row in room.engines() if row["pid"] and row["pid"] not in old]
    loading = [row["loading"] or {"percent": 100} for row in fresh]
    return any((each["percent"] or 0) >= 80 for each in loading)


def text(payloads: list[str]) -> str:
    """The text of a stream that ended well."""
    assert payloads[-1] == "[DONE]", payloads[-1]
    parts = [json.loads(each) for each in payloads[:-1]]
    said = "".join(part.get("token", "") for part in parts)
    assert said == parts[-1]["generated_text"]
    return said


def broken(payloads: list[str]) -> bool:
    """Whether a stream ended with the one error; a whole one is the other way to end."""
    if payloads[-1] == "[DONE]":
        text(payloads)
        return False
    last: Any = json.loads(payloads[-1])
    assert last["error"]["code"] == "engine_died", last
    assert not any("error" in json.loads(each) for each in payloads[:-1])
    return True
