"""Requests between HTTP and the loop: the waiting line, places, adapters' turns, ends.

Everything here runs on the event loop's thread. Each open request is a `Stream`, whose `ticket`
is known to `Turns` until it ends, in whatever way; `close` is the only way out.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from pytorch_bodies import Asked, Refused
from pytorch_turns import Admit, Switch, Turns

if TYPE_CHECKING:  # what it works on is given: it imports without torch
    from pytorch_flags import Options
    from pytorch_loop import Loop
    from pytorch_metrics import Metrics
    from pytorch_model import Loaded

log = logging.getLogger("pytorch_server")
TURN_S = 2.0  # how long an adapter's requests may still enter while another's wait


@dataclass(frozen=True)
class Tokens:
    """New tokens; `last` where they are the final ones."""

    ids: list[int]
    last: bool


@dataclass(frozen=True)
class Ended:
    """No more tokens come: the client is `gone`, or the server says why in `refusal`."""

    refusal: Refused | None = None


@dataclass
class Stream:
    """One open request. `sent` counts the tokens that were queued."""

    ticket: int
    adapter: str
    asked: Asked
    prompt: list[int]
    max_tokens: int
    arrived: float
    entered: bool = False
    done: bool = False
    sent: int = 0
    events: asyncio.Queue[Tokens | Ended] = field(default_factory=asyncio.Queue)

    @property
    def name(self) -> str:
        """What the loop calls it."""
        return f"r{self.ticket}"


class Engine:
    """All open requests of one server."""

    def __init__(self, loaded: Loaded, options: Options, loop: Loop, metrics: Metrics) -> None:
        self.loaded, self.metrics, self.loop = loaded, metrics, loop
        self.options = options
        self._turns = Turns(options.max_num_seqs, 2 * options.max_num_seqs, TURN_S)
        self._streams: dict[int, Stream] = {}
        self._numbers = itertools.count()
        self._luck = Random(options.seed)  # noqa: S311 seeds of texts, not of secrets
        self._closing: str | None = None
        self._failure: str | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        metrics.watch(
            running=lambda: self._turns.running,
            waiting=lambda: self._turns.waiting,
            used=lambda: self.loop.blocks_used,
            iterations=lambda: self.loop.iterations,
            blocks=loaded.num_blocks,
        )

    async def emptied(self) -> None:
        """Wait until every request has ended."""
        if self._streams:
            await self._empty.wait()

    def alive(self) -> bool:
        """Whether requests are computed."""
        return self.death() is None

    def death(self) -> str | None:
        """Why no more requests are computed, None while they are; it does not come back."""
        return self.loop.death() or self._failure

    def adapter_of(self, model: str) -> str:
        """The adapter behind a model name, "" for the base; Refused (404) for an unknown name."""
        if model in self.options.served:
            return self.options.default_adapter or ""
        if model in self.loaded.adapters:
            return model
        known = ", ".join((*self.options.served, *self.loaded.adapters))
        raise Refused(
            f"the model {model!r} is not served here; there are: {known}",
            status=404, code="model_not_found", param="model",
        )  # fmt: skip

    def submit(self, asked: Asked, prompt: list[int]) -> Stream:
        """A place in the line; Refused where there is none or the request can never be computed."""
        adapter = self.adapter_of(asked.model)
        limit = self._fitting(asked, prompt)
        if self._closing is not None or not self.alive():
            why = self._closing or "the engine has failed"
            raise Refused(why, status=503, kind="unavailable_error", retry_after=5)
        if self._turns.waiting >= self.options.max_queue_size:
            raise Refused(
                f"{self._turns.waiting} requests wait already",
                status=503, kind="overloaded_error", code="too_many_waiting", retry_after=1,
            )  # fmt: skip
        if not asked.seeded:
            drawn = replace(asked.sampling, seed=self._luck.getrandbits(64))
            asked = replace(asked, sampling=drawn)
        number = next(self._numbers)
        stream = Stream(number, adapter, asked, prompt, limit, time.monotonic())
        self._streams[number] = stream
        self._empty.clear()
        self._turns.join(number, adapter)
        self._pump()
        return stream

    def _fitting(self, asked: Asked, prompt: list[int]) -> int:
        """Tokens that may be generated."""
        if not prompt:
            raise Refused("prompt is empty", param="prompt", code="empty_prompt")
        if max(prompt) >= self.loaded.vocabulary:
            most = self.loaded.vocabulary - 1
            raise Refused(f"prompt holds a token id above {most}", param="prompt")
        room = self.loaded.max_model_len - len(prompt)
        limit = asked.max_tokens
        if limit is None:
            limit = min(asked.default_tokens or room, room)
        if limit > room or room < 1:
            raise Refused(
                f"the prompt has {len(prompt)} tokens and {max(limit, 1)} more are asked for; "
                f"the context is {self.loaded.max_model_len} tokens",
                code="context_length_exceeded",
                param="prompt" if room < 1 else "max_tokens",
            )
        return limit

    async def events(self, stream: Stream) -> AsyncIterator[Tokens]:
        """Tokens until the last; fewer if the client is gone, Refused where the server ends it."""
        while True:
            event = await stream.events.get()
            if isinstance(event, Ended):
                if event.refusal is not None:
                    raise event.refusal
                return
            yield event
            if event.last:
                return

    def close(self, stream: Stream, reason: str) -> None:
        """The request has ended; frees its place. Safe to call again."""
        if self._streams.pop(stream.ticket, None) is None:
            return
        if stream.entered and not stream.done:
            self.loop.cancel(stream.name)
        self.metrics.finished.labels(reason).inc()
        self._turns.leave(stream.ticket)
        if not self._streams:
            self._empty.set()
        self._pump()

    def refuse_new(self, why: str) -> None:
        """From now on nobody joins."""
        self._closing = why

    def end_all(self, refusal: Refused) -> None:
        """Every open request ends with this error."""
        for stream in self._streams.values():
            stream.events.put_nowait(Ended(refusal))

    def _pump(self) -> None:
        """Do what `Turns` decides until there is nothing to do."""
        while (step := self._turns.decide(time.monotonic())) is not None:
            if isinstance(step, Admit):
                for ticket in step.tickets:
                    self._enter(self._streams[ticket])
            else:
                self._later(step)

    def _later(self, step: Switch) -> None:
        job = asyncio.create_task(self._switch(step))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _switch(self, step: Switch) -> None:
        try:
            await asyncio.to_thread(self.loop.switch, step.adapter)
        except Exception as error:
            # Of any kind: the loop has died, or the library changed some layers and not others.
            # Nothing computed now could be trusted, so the service ends the process.
            log.exception("while an adapter was activated")
            what = f"adapter {step.adapter}" if step.adapter else "the base model"
            why = " ".join(f"{type(error).__name__}: {error}".split())  # the log's last line
            self._failure = f"{what} was not activated: {why}"
            self.end_all(failed(self.death() or self._failure))
            return
        self._turns.switched()
        self._pump()

    def _enter(self, stream: Stream) -> None:
        asked = stream.asked
        stream.entered = True
        eos = () if asked.ignore_eos else self.loaded.eos
        added = self.loop.add(
            stream.name, stream.prompt, stream.max_tokens, asked.sampling, eos,
            lambda output: self._told(stream, output),
        )  # fmt: skip
        if added:
            self.metrics.prompt_tokens.inc(len(stream.prompt))
        else:
            stream.events.put_nowait(Ended(failed("the batching loop takes no requests")))

    def _told(self, stream: Stream, output: object) -> None:
        """An output of the loop: all tokens so far."""
        if stream.ticket not in self._streams:
            return
        if output.error is not None:  # type: ignore[attr-defined]
            stream.done = True
            stream.events.put_nowait(Ended(failed(output.error)))  # type: ignore[attr-defined]
            return
        new: list[int] = output.generated_tokens[stream.sent :]  # type: ignore[attr-defined]
        if stream.sent == 0 and new:
            self.metrics.first_token.observe(time.monotonic() - stream.arrived)
        stream.sent += len(new)
        stream.done = output.is_finished()  # type: ignore[attr-defined]
        self.metrics.generation_tokens.inc(len(new))
        stream.events.put_nowait(Tokens(new, stream.done))


def failed(why: str) -> Refused:
    """The error of a request that was being computed when the loop failed."""
    return Refused(f"the engine failed: {why}", status=500, kind="server_error", code="engine_died")
