"""What a request asks for, as far as queue, limits and routing care. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.access import ANONYMOUS
from orchestrator.errors import BadRequest
from orchestrator.gateway.weights import characters, lead, text, turns

PRIORITY_HEADER = b"x-request-priority"
TIMEOUT_HEADER = b"x-request-timeout"
SESSION_HEADER = b"x-session-id"
MAX_TIMEOUT_S = 86_400.0
_BYTES_PER_TOKEN = 4  # English text, most tokenizers; put right when the engine has counted
_NEW_TOKENS = 256  # an answer whose length nobody said
_SESSION_LENGTH = 256
_PREFIX = 1024  # characters: below it there is little that an engine could keep
_NUMBER = re.compile(rb"[+-]?[0-9]{1,9}(\.[0-9]{0,9})?")
_FIRST = frozenset({"system", "developer"})


class Ask(NamedTuple):
    """One request: what it costs, how urgent it is, and where its prompt may be known already.

    `model` is the route's name, `key` the name of the API key. `deadline` is in monotonic seconds.
    `affinity` is a hash of what the request shares with its like; empty for "anywhere".
    """

    model: str
    key: str = ANONYMOUS
    prompt_tokens: int = 0
    new_tokens: int = 0
    priority: int = 0
    deadline: float | None = None
    affinity: bytes = b""

    @property
    def cost(self) -> int:
        """Tokens that it may take, prompt and answer; at least one."""
        tokens = self.prompt_tokens + self.new_tokens
        return tokens if tokens > 0 else 1


def ask_for(
    model: str,
    body: Mapping[str, Any],
    headers: Mapping[bytes, bytes],
    now: float,
    *,
    key: str = ANONYMOUS,
    ceiling: int = 0,
    context: int = 1 << 30,
    priority: int | None = None,
    timeout: float | None = None,
    choice: bool = True,
    size: int | None = None,
    generates: bool = True,
) -> Ask:
    """The ask behind an engine body (`prompt` or `messages`) and the client's headers.

    `ceiling` is the key's highest priority; `priority` and `timeout` (seconds) are the body's own
    and beat the headers. Without a `choice` of replicas nothing is hashed. `size` are the body's
    characters where they were counted, `generates` whether it asks for an answer in words. Raises
    BadRequest for a header that is no number.
    """
    if priority is None:
        said = headers.get(PRIORITY_HEADER)
        priority = 0 if said is None else int(_number(said, PRIORITY_HEADER, -100, 100))
    if timeout is None and (said := headers.get(TIMEOUT_HEADER)) is not None:
        timeout = _number(said, TIMEOUT_HEADER, 0.001, MAX_TIMEOUT_S)
    limit = body.get("max_tokens", body.get("max_output_tokens"))
    prompt = (characters(body) if size is None else size) // _BYTES_PER_TOKEN + 1
    new = limit if isinstance(limit, int) else _NEW_TOKENS if generates else 0
    return Ask(
        model,
        key,
        prompt if prompt < context else context,
        new if new < context else context,
        priority if priority < ceiling else ceiling,
        None if timeout is None else now + timeout,
        affinity(body, headers.get(SESSION_HEADER)) if choice else b"",
    )


def affinity(body: Mapping[str, Any], session: bytes | None = None) -> bytes:
    """What sends like requests to the same replica; empty for "anywhere".

    A session says it all. A chat has two hashes: of a system prompt that is long enough to be worth
    sharing, and of how this conversation began, its first question included, which stays the same
    however long it grows. A plain prompt counts by its beginning; a short one goes anywhere.
    """
    if session:
        return _hash(b"s" + session[:_SESSION_LENGTH])
    messages, prompt = turns(body), body.get("prompt")
    if isinstance(prompt, str) and len(prompt) >= _PREFIX:
        return _hash(b"p" + prompt[:_PREFIX].encode("utf-8", "replace"))
    if not messages:
        return b""
    system, first = lead(body), ""
    for message in messages:
        said = f"{message.get('role')}\0{text(message.get('content'))}\0"
        if message.get("role") not in _FIRST:
            first = said
            break
        system += said
    own = _hash((system + first).encode("utf-8", "replace"))
    if len(system) < _PREFIX:
        return own
    return _hash(system.encode("utf-8", "replace")) + own


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _number(said: bytes, name: bytes, least: float, most: float) -> float:
    """The number in a header, within its bounds."""
    value = float(said) if _NUMBER.fullmatch(said) else math.nan
    if not least <= value <= most:
        raise BadRequest(
            f"the header {name.decode()} has to be a number from {least:g} to {most:g}"
        )
    return value
