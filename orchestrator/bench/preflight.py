"""Before the load: does the target answer, to this key, for this model, in this dialect?"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace

from orchestrator.bench.answers import error_words
from orchestrator.bench.client import Broken, Client, Exchange
from orchestrator.bench.driver import bytes_of
from orchestrator.bench.lengths import Length
from orchestrator.bench.orders import Asking
from orchestrator.bench.targets import request_bytes
from orchestrator.bench.workload import Workload
from orchestrator.errors import EngineRoomError, TargetRefused, TargetUnreachable

_FEW, _MORE = 10, 50  # words of the two trial prompts


@dataclass(frozen=True)
class Found:
    """A target that answers: how to ask it, and words per token where it counts prompts."""

    asking: Asking
    words_per_token: float | None


async def preflight(asking: Asking, key_hint: str) -> Found:
    """Choose the model, ask two short requests. Raises TargetUnreachable or TargetRefused.

    `key_hint` says where a key would come from.
    """
    client = Client(asking.target, min(asking.timeout, 300.0))
    try:
        names = await _models(client, asking, key_hint)
        if asking.model is None and names:
            if len(names) > 1:
                raise TargetRefused(
                    f"{asking.target.url} serves {_list(names)}: choose one with --model"
                )
            asking = replace(asking, model=names[0])
        counts = [await _try(client, asking, words, names, key_hint) for words in (_FEW, _MORE)]
    finally:
        client.close()
    few, more = counts
    if few is None or more is None or more <= few:
        return Found(asking, None)
    return Found(asking, (_MORE - _FEW) / (more - few))


async def _models(client: Client, asking: Asking, key_hint: str) -> list[str]:
    """The names that the target lists; none where it has no list. A wrong key is found here."""
    target = asking.target
    exchange = Exchange(target.dialect, stream=False)
    data = request_bytes(target, "GET", target.models_path, asking.key, None)
    await _ask(client, data, exchange, asking)
    if exchange.status in (401, 403):
        raise _wrong_key(asking, exchange, key_hint)
    try:
        listed = json.loads(bytes(exchange.body))["data"]
        names = [str(each["id"]) for each in listed]
    except (ValueError, LookupError, TypeError):
        names = []
    if not names and asking.model is None and target.dialect != "generate":
        raise TargetRefused(
            f"{target.url} lists no models (HTTP {exchange.status} on {target.models_path}): is it "
            "the base URL of an OpenAI-compatible server? Name the model with --model, or measure "
            "Engine Room's own API with --api generate"
        )
    return names


async def _try(
    client: Client, asking: Asking, words: int, names: list[str], key_hint: str
) -> int | None:
    """One short request: the prompt's tokens by the server's count."""
    workload = Workload(0, Length("fixed", float(words)), Length("fixed", 2.0), salt="trial")
    exchange = Exchange(asking.target.dialect, asking.stream)
    await _ask(client, bytes_of(asking, workload, -words), exchange, asking)
    problem = exchange.verdict()
    if not problem:
        return exchange.prompt_tokens
    if exchange.status in (401, 403):
        raise _wrong_key(asking, exchange, key_hint)
    told = exchange.error or _words(exchange)
    if exchange.status in (429, 503):
        raise TargetUnreachable(
            f"{asking.target.url} takes nothing now (HTTP {exchange.status}): {told}"
        )
    if exchange.status == 404:
        raise _not_found(asking, names, told)
    hint = ""
    if "stream_options" in told or "include_usage" in told:
        hint = "; leave that field out with --no-usage"
    said = f": {told}" if told else ""
    raise TargetRefused(f"{asking.target.url} refused a trial request ({problem}){said}{hint}")


async def _ask(client: Client, data: bytes, exchange: Exchange, asking: Asking) -> None:
    try:
        await client.ask(data, exchange)
    except Broken as broken:
        raise TargetUnreachable(
            f"{asking.target.url} does not answer: {broken}. Is the server running, and are host, "
            "port and http or https right?"
        ) from None


def _wrong_key(asking: Asking, exchange: Exchange, key_hint: str) -> EngineRoomError:
    which = "the key" if asking.key else "a request without a key"
    return TargetRefused(
        f"{asking.target.url} refused {which} (HTTP {exchange.status}): {key_hint}"
    )


def _not_found(asking: Asking, names: list[str], told: str) -> EngineRoomError:
    path = asking.target.path(asking.stream)
    if asking.model is not None and names and asking.model not in names:
        near = difflib.get_close_matches(asking.model, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return TargetRefused(
            f"{asking.target.url} has no model {asking.model!r}, it serves {_list(names)}{hint}"
        )
    return TargetRefused(
        f"{asking.target.url} has no {path} for this model (HTTP 404): {told}. Another API: --api"
    )


def _words(exchange: Exchange) -> str:
    try:
        value = json.loads(bytes(exchange.body))
    except ValueError:
        return " ".join(bytes(exchange.body[:200]).decode("utf-8", "replace").split())
    return error_words(value) if isinstance(value, dict) else str(value)[:200]


def _list(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
