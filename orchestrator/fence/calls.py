"""Which calls of the Docker API there are for a runtime for containers. Pure.

What is not one of them is refused: another path, another version, another parameter. Parameters are
written anew for the Docker Engine, so that it reads what was judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from orchestrator.runtimes.docker.labels import INSTALLATION


class Kind(Enum):
    """How a call is judged further."""

    OPEN = "asks about the Docker Engine, an image or the network"
    LOOK = "asks about a container"
    ORDER = "orders something of a container"
    CREATE = "creates a container"
    PULL = "pulls an image"


class Call(NamedTuple):
    """One call that may be made. `name`: the container, as the caller named it."""

    kind: Kind
    method: str
    path: str
    query: str
    name: str = ""

    def of(self, id: str) -> Call:
        """The same, of the container with that id."""
        return self._replace(
            path=self.path.replace(f"/containers/{self.name}", f"/containers/{id}")
        )


class Refused(Exception):
    """What is asked does not pass, and why."""


_VERSION = r"(?:/v1\.(?:4\d|[5-9]\d))"  # what is older takes powers at the start of a container
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_IMAGE = r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*"
_READS, _POSTS, _DELETES = ("GET", "HEAD"), ("POST",), ("DELETE",)


class _Rule(NamedTuple):
    kind: Kind
    methods: Sequence[str]
    path: re.Pattern[str]
    query: frozenset[str]


def _rule(kind: Kind, methods: Sequence[str], path: str, *query: str) -> _Rule:
    return _Rule(kind, methods, re.compile(path), frozenset(query))


_RULES = (
    _rule(Kind.OPEN, _READS, f"{_VERSION}?/(_ping|version)"),
    _rule(Kind.OPEN, _READS, f"{_VERSION}/info"),
    _rule(Kind.OPEN, _READS, f"{_VERSION}/images/{_IMAGE}/json"),
    _rule(Kind.OPEN, _READS, f"{_VERSION}/events", "filters", "since", "until"),
    _rule(Kind.OPEN, _READS, f"{_VERSION}/containers/json", "all", "limit", "size", "trunc_cmd",
          "filters"),
    _rule(Kind.OPEN, _READS, f"{_VERSION}/networks/(?P<network>{_NAME})"),
    _rule(Kind.LOOK, _READS, f"{_VERSION}/containers/(?P<name>{_NAME})/json"),
    _rule(Kind.ORDER, _READS, f"{_VERSION}/containers/(?P<name>{_NAME})/(logs|stats|top)",
          "stdout", "stderr", "timestamps", "follow", "tail", "since", "until", "stream",
          "one-shot", "ps_args"),
    _rule(Kind.ORDER, _POSTS,
          f"{_VERSION}/containers/(?P<name>{_NAME})/(start|stop|kill|wait|pause|unpause)",
          "t", "signal", "condition"),
    _rule(Kind.ORDER, _DELETES, f"{_VERSION}/containers/(?P<name>{_NAME})", "v", "force", "link"),
    _rule(Kind.CREATE, _POSTS, f"{_VERSION}/containers/create", "name"),
    _rule(Kind.PULL, _POSTS, f"{_VERSION}/images/create", "fromImage", "tag", "platform"),
)  # fmt: skip
_LISTS = ("/events", "/containers/json")


def call_of(method: str, path: str, query: str, network: str) -> Call:
    """The call that is meant, with `path` and `query` as they stand on the wire.

    Raises Refused. Lists and events are of Engine Room's containers only.
    """
    told = f"{method} {path}"
    # An image's digest follows an @, which may be encoded; nothing else is.
    plain = re.sub("%40", "@", path)
    if "%" in plain or "//" in plain or ".." in plain:
        raise Refused(f"{told}: a path is to be written as it is")
    for rule in _RULES:
        found = rule.path.fullmatch(plain)
        if found is None or method not in rule.methods:
            continue
        if found.groupdict().get("network", network) != network:
            raise Refused(f"{told}: only the network {network} is looked at")
        asked = dict(parse_qsl(query, keep_blank_values=True))
        if strange := sorted(set(asked) - rule.query):
            raise Refused(f"{told}: no parameter {strange[0]}")
        if plain.endswith(_LISTS):
            _check_filters(told, asked)
        name = found.groupdict().get("name", "")
        return Call(rule.kind, method, plain, urlencode(asked), name)
    raise Refused(f"{told}: a runtime for containers does not need it")


def _check_filters(told: str, asked: Mapping[str, str]) -> None:
    """Whether a list is narrowed down to containers of ours."""
    try:
        filters = json.loads(asked.get("filters", "{}"))
        labels = filters.get("label", ()) if isinstance(filters, dict) else ()
    except ValueError:
        labels = ()
    if not any(str(each).startswith(f"{INSTALLATION}=") for each in labels):
        raise Refused(f"{told}: name one installation in the filters, label {INSTALLATION}=...")


def shown(path: str) -> str:
    """A path for people, whatever was sent."""
    return re.sub(r"[^ -~]", "?", unquote(path))[:200]
