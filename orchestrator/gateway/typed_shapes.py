"""What clients of `/v1/messages` and `/v1/responses` get of an engine's events. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from orchestrator.errors import UpstreamInvalid
from orchestrator.gateway.guard import Guard
from orchestrator.gateway.shapes import End
from orchestrator.gateway.sse import LF


class TypedPassing:
    """The stream: each event under its name, with the model's name as it was asked for."""

    __slots__ = ("_name",)
    stream = True
    keeps_text = False
    passes = False

    def __init__(self, name: str) -> None:
        self._name = name

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        if _renamed(value, self._name) or LF in payload:
            payload = orjson.dumps(value)
        return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), payload)

    def closing(self, guard: Guard, end: End) -> bytes:
        return b""


class ResponsePassing(TypedPassing):
    """The stream of `/v1/responses`, with what clients count on where an engine leaves it out.

    `sequence_number` numbers the events, `output_index` the items in the order of their beginning,
    `content_index` the parts of one item.
    """

    __slots__ = ("_items", "_number", "_part")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._number = 0
        self._items: dict[str, int] = {}
        self._part = 0

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        value.setdefault("sequence_number", self._number)
        self._number += 1
        kind, item = value["type"], value.get("item")
        name = item.get("id") if isinstance(item, dict) else value.get("item_id")
        if isinstance(name, str) and kind.startswith(("response.output_", "response.content_")):
            value.setdefault("output_index", self._items.setdefault(name, len(self._items)))
        elif isinstance(name, str):
            value.setdefault("output_index", self._items.get(name, 0))
        if kind == "response.output_item.added":
            self._part = -1
        self._part += kind == "response.content_part.added"
        if kind.startswith(("response.content_part.", "response.output_text.")):
            value.setdefault("content_index", max(0, self._part))
        return super().chunk(orjson.dumps(value), value, text)


class WholeResponse:
    """`/v1/responses` without `stream`: the last event has all of it."""

    __slots__ = ("_name", "_response")
    stream = False
    keeps_text = False
    passes = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._response: dict[str, Any] = {}

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        if isinstance(value.get("response"), dict):
            self._response = value["response"]
        return b""

    def closing(self, guard: Guard, end: End) -> bytes:
        return orjson.dumps({**self._response, "model": self._name})


class WholeMessage:
    """`/v1/messages` without `stream`: the message, its blocks put together from their deltas."""

    __slots__ = ("_blocks", "_inputs", "_message", "_name")
    stream = False
    keeps_text = False
    passes = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}

    def text(self, inside: bytes, payload: bytes) -> bytes:
        return b""

    def chunk(self, payload: bytes, value: dict[str, Any], text: str) -> bytes:
        try:
            self._take(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise UpstreamInvalid("the engine sent an event that fits no message") from error
        return b""

    def _take(self, value: dict[str, Any]) -> None:
        match value["type"]:
            case "message_start":
                self._message = dict(value["message"])
            case "content_block_start":
                self._blocks[value["index"]] = dict(value["content_block"])
            case "content_block_delta":
                self._add(value["index"], value["delta"])
            case "message_delta":
                self._message |= value["delta"]
                usage = self._message.get("usage", {})
                self._message["usage"] = {**usage, **value.get("usage", {})}

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks[index]
        if delta["type"] == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]
            return
        field = delta["type"].removesuffix("_delta")  # text, thinking, signature
        block[field] = block.get(field, "") + delta[field]

    def closing(self, guard: Guard, end: End) -> bytes:
        for index, text in self._inputs.items():
            try:
                self._blocks[index]["input"] = orjson.loads(text or "{}")
            except orjson.JSONDecodeError:
                self._blocks[index]["input"] = {"arguments": text}  # the model's own words
        blocks = [self._blocks[index] for index in sorted(self._blocks)]
        return orjson.dumps({**self._message, "content": blocks, "model": self._name})


def _renamed(value: dict[str, Any], name: str) -> bool:
    """Put the asked name where the engine told its own; whether it had to be."""
    for key in ("message", "response"):
        holder = value.get(key)
        if isinstance(holder, dict) and holder.get("model", name) != name:
            holder["model"] = name
            return True
    return False
