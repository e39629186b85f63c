"""From an error object that came over the wire back to the exception. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator import errors
from orchestrator.errors import EngineRoomError


def from_envelope(error: Mapping[str, object]) -> EngineRoomError:
    """The exception behind an error object that came over the wire; its class follows `code`.

    A code that this version does not know becomes an EngineRoomError that carries it.
    """
    code = str(error.get("code") or EngineRoomError.code)
    cls = next((each for each in _tree(EngineRoomError) if each.code == code), EngineRoomError)
    made = cls(str(error.get("message") or "the server gave no reason"))
    param = error.get("param")
    made.param = None if param is None else str(param)
    made.code = code
    made.retryable = bool(error.get("retryable", made.retryable))
    return made


def _tree(root: type[EngineRoomError]) -> Iterator[type[EngineRoomError]]:
    """A class and what is derived from it in `errors`: other modules' own reuse our codes."""
    yield root
    for each in root.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _tree(each)
