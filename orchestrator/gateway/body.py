"""From the bytes of a request body to a checked model. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.errors import BadRequest, UnsupportedParameter

_MAX_DEPTH = 64
# A whole string, or one that never ends, or a bracket: every character is looked at once.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: bytes) -> M:
    """Parse and check. Raises BadRequest or UnsupportedParameter, naming the field."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return check(model, value)


def check(model: type[M], value: dict[str, Any]) -> M:
    """The same for what is parsed already."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _explain(error) from None


def parse_json(data: bytes) -> Any:
    """JSON as the standard has it: no duplicate keys, NaN, NUL, lone surrogates or deep nesting."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None
    if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
        raise BadRequest(f"the body nests deeper than {_MAX_DEPTH} levels")
    try:
        value = _DECODER.decode(text)
    except BadRequest:
        raise
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error.msg} at {error.pos}") from None
    except (ValueError, RecursionError):
        raise BadRequest("the body holds a number that is out of range") from None
    if "\\u" in text:  # the only way for a NUL or half a surrogate pair to get here
        _check_text(value)
    return value


def _depth(text: str) -> int:
    """How deep the brackets outside strings nest; found before the recursive parser can suffer."""
    depth = deepest = 0
    for match in _TOKEN.finditer(text):
        first = text[match.start()]
        if first != '"':
            depth += 1 if first in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise BadRequest(f"the key {twice[:64]!r} is given twice")


def _refuse(word: str) -> NoReturn:
    raise BadRequest(f"{word} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise BadRequest("text must not contain NUL characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRequest("text must not contain lone surrogates") from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key)
            _check_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner)


def _explain(error: ValidationError) -> BadRequest | UnsupportedParameter:
    # A union reports one error per member; one about the value says more than those about types.
    found = error.errors(include_url=False, include_input=False)
    first = next((each for each in found if not each["type"].endswith("_type")), found[0])
    place = [str(part) for part in first["loc"]]
    field = place[0][:64] if place else "body"
    if first["type"] == "extra_forbidden":
        name = place[-1][:64]
        return UnsupportedParameter(f"unknown field {name!r}", param=name)
    if first["type"] == "missing":
        return BadRequest(f"the field {place[-1]!r} is required", param=place[-1])
    message = str(first["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    return BadRequest(f"{field}: {message[:1].lower()}{message[1:]}", param=field)
