"""One request's answer: tokens to text, stop strings, the reason of the end, and OpenAI's JSON."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from pytorch_engine import Engine, Stream
from pytorch_text import Decode, Detokenizer, StopScanner


@dataclass(frozen=True)
class Piece:
    """Text that may be sent, tokens generated so far, and at the end the reason of the end."""

    text: str
    tokens: int
    finish: str | None


def decoder(tokenizer: Any) -> Decode:
    """Text of token ids without special tokens, as the tokenizer writes it, nothing tidied up."""

    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    return decode


async def pieces(engine: Engine, stream: Stream, decode: Decode) -> AsyncGenerator[Piece]:
    """The answer as it comes; ends after the piece with a reason, early if the client is gone."""
    past = Detokenizer(decode, stream.prompt)
    scanner = StopScanner(stream.asked.stop)
    eos = frozenset() if stream.asked.ignore_eos else frozenset(engine.loaded.eos)
    count = 0
    async for event in engine.events(stream):
        text, ended = "", False
        for token in event.ids:  # one by one: the count must not depend on how they arrived
            count += 1
            ended = token in eos
            text += "" if ended else scanner.feed(past.feed([token]))
            if scanner.stopped:
                yield Piece(text, count, "stop")
                return
        if event.last:
            text += scanner.flush()
            reason = "stop" if ended or scanner.stopped else "length"
            yield Piece(text, count, reason)
            return
        if text:
            yield Piece(text, count, None)


class Shape:
    """The JSON of one answer, of a completion or a chat."""

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._whole_kind = kind
        self._part_kind = f"{kind}.chunk" if chat else kind
        prefix = "chatcmpl" if chat else "cmpl"
        self._base = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._model = model

    def whole(self, text: str, finish: str | None, usage: dict[str, int]) -> dict[str, Any]:
        """An answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return self._answer(self._whole_kind, [choice]) | {"usage": usage}

    def first(self) -> dict[str, Any] | None:
        """The chunk that opens a chat's stream."""
        if not self._chat:
            return None
        return self._delta({"role": "assistant", "content": ""}, None)

    def part(self, piece: Piece) -> dict[str, Any]:
        """A chunk of a stream."""
        if self._chat:
            return self._delta({"content": piece.text} if piece.text else {}, piece.finish)
        choice = {"index": 0, "text": piece.text, "finish_reason": piece.finish, "logprobs": None}
        return self._answer(self._part_kind, [choice])

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk that ends a stream whose client asked for it."""
        return self._answer(self._part_kind, []) | {"usage": usage}

    def _delta(self, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._answer(self._part_kind, [choice])

    def _answer(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._base, "object": kind, "model": self._model, "choices": choices}


def usage(prompt: int, generated: int) -> dict[str, int]:
    """Token counts of an answer."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
