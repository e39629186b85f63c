"""What a prompt weighs: bounds from its characters, and questions to an engine's own tokenizer.

Only engines whose streams carry no usage are asked; see `Quirks.tokenize_path`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import orjson
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.control import ModelRoute, Replica
from orchestrator.errors import (
    BadRequest,
    ContextLengthExceeded,
    UpstreamBroken,
    UpstreamInvalid,
    UpstreamTimeout,
)
from orchestrator.gateway.engine_connection import EngineConnection
from orchestrator.gateway.engine_pool import EnginePool, address_of

_log = logging.getLogger("engineroom.gateway")
_CHARACTERS_PER_TOKEN = 64  # more than any tokenizer reaches on average


class Tokenizers:
    """Asks engines to count, over one pool of connections."""

    def __init__(self, pool: EnginePool, stall_timeout_s: float) -> None:
        self._pool, self._stall_s = pool, stall_timeout_s
        self._extra_tokens: dict[tuple[str, int], int] = {}

    async def count(self, route: ModelRoute, replica: Replica, text: str) -> int:
        """Tokens of `text` as the engine's own tokenizer has them, without its bos."""
        key = (replica.id, replica.generation)
        if key not in self._extra_tokens:
            extra = await self._ask(route, replica, "")
            others = {k: v for k, v in self._extra_tokens.items() if k[0] != replica.id}
            self._extra_tokens = {**others, key: extra}
        return await self._ask(route, replica, text) - self._extra_tokens[key]

    async def of_prompt(self, route: ModelRoute, replica: Replica, body: dict[str, Any]) -> int:
        """Tokens of the prompt that the engine will see, its bos included; 0 where nobody can say.

        Raises ContextLengthExceeded where no room is left for an answer.
        """
        if "prompt" in body:
            count = await self._ask(route, replica, body["prompt"])
        else:  # a template writes the bos itself, and the engine adds none
            text = render_chat(route, body["messages"], body.get("tools"))
            count = 0 if text is None else await self.count(route, replica, text)
        if count >= route.context:
            raise too_long(route, f"{count}", body)
        return count

    async def _ask(self, route: ModelRoute, replica: Replica, text: str) -> int:
        path = route.quirks.tokenize_path or ""
        body = orjson.dumps({"model": route.name, "input": text})
        request = self._pool.head(replica.base_url, path) + b"%d\r\n\r\n" % len(body) + body
        try:
            async with asyncio.timeout(self._stall_s):
                answer = await self._exchange(replica.base_url, request)
        except TimeoutError:
            raise UpstreamTimeout("the engine's tokenizer does not answer") from None
        try:
            return int(orjson.loads(answer)["count"])
        except (ValueError, KeyError, TypeError) as error:
            raise UpstreamInvalid("the engine's tokenizer gave no count") from error

    async def _exchange(self, base_url: str, request: bytes) -> bytes:
        """One question, once more where a kept connection turns out to be dead."""
        address = address_of(base_url)
        while True:
            connection = self._pool.take(address) or await self._pool.connect(address)
            used, question = connection.used, _Question()
            try:
                connection.send(question, request)
                if (answer := await question.answer) is not None:
                    return answer
            finally:
                if question.connection is not None:
                    question.connection.abort()
            if not used or not question.silent:
                raise UpstreamBroken("the engine's connection broke before its answer began")


class _Question:
    """A call that wants the whole body, whatever the status; None where there is none."""

    def __init__(self) -> None:
        self.connection: EngineConnection | None = None
        self.answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.silent = False
        self._body = b""

    def headed(self, status: int, headers: dict[bytes, bytes]) -> None:
        pass

    def received(self, data: bytes) -> None:
        self._body += data

    def chunk(self, data: bytes) -> bool:
        return False

    def ended(self) -> None:
        if not self.answer.done():
            self.answer.set_result(self._body)

    def lost(self, silent: bool) -> None:
        self.silent = silent
        if not self.answer.done():
            self.answer.set_result(None)


def refuse_hopeless(route: ModelRoute, body: dict[str, Any], size: int) -> None:
    """Raise ContextLengthExceeded for what no tokenizer could make short enough.

    Asked before a lease, so that a huge prompt costs nobody else's time. `size` in characters.
    """
    if size > route.context * _CHARACTERS_PER_TOKEN:
        raise too_long(route, f"{size} characters", body)


def too_long(route: ModelRoute, size: str, body: dict[str, Any]) -> ContextLengthExceeded:
    """The refusal of a prompt of `size`, in the words that clients look for."""
    return ContextLengthExceeded(
        f"this model's maximum context length is {route.context} tokens, the prompt has "
        f"{size}: shorten it",
        param="prompt" if "prompt" in body else "messages",
    )


def render_chat(route: ModelRoute, messages: list[dict[str, Any]], tools: Any) -> str | None:
    """The prompt that the model's chat template makes of `messages`, to count its tokens.

    None where it cannot be rendered here: the engine is the judge then. Raises BadRequest for what
    the template itself refuses.
    """

    def refuse(message: str) -> None:
        raise BadRequest(f"the model's chat template refuses: {message}", param="messages")

    if route.chat_template is None:
        return "\n".join(str(message.get("content") or "") for message in messages)
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        return jinja.from_string(route.chat_template).render(
            messages=messages,
            bos_token=route.bos_token or "",
            eos_token=route.eos_token or "",
            add_generation_prompt=True,
            tools=tools,
            raise_exception=refuse,
            strftime_now=time.strftime,
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        _log.info("model=%s chat template not rendered, prompt not counted: %s", route.name, error)
        return None
