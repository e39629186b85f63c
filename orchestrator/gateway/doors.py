"""By which name, and from which web pages, the gateway may be asked. Pure.

Both are settings and off: without `allowed_hosts` every Host will do, without `cors_origins` no
browser lets a foreign page read an answer. Nothing is reflected: an origin is named in an answer
only when it is on the list, and credentials are never allowed.
"""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.errors import WrongHost

Headers = tuple[tuple[bytes, bytes], ...]
_METHODS = b"GET, POST"
_FIELDS = (
    b"authorization, content-type, x-api-key, anthropic-version, x-request-id, x-request-priority, "
    b"x-request-timeout, x-session-id, x-stainless-arch, x-stainless-lang, x-stainless-os, "
    b"x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, "
    b"x-stainless-runtime-version, x-stainless-timeout"
)
_SECONDS = b"600"


def host_name(host: str) -> str:
    """The name in a Host header, without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


class Doors:
    """`hosts` are names without ports, `origins` as browsers say them, such as https://a.example."""

    def __init__(self, hosts: Collection[str], origins: Collection[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)
        self.closed = bool(self._hosts or self._origins)
        """Whether there is anything to check or to add."""

    def check(self, host: str | None) -> None:
        """Raise WrongHost for a name that is not on the list: a page may have made it up."""
        if self._hosts and host_name(host or "") not in self._hosts:
            raise WrongHost("this Host is not served here: see the setting allowed_hosts")

    def answer(self, origin: str | None) -> Headers:
        """What an answer to that origin carries."""
        if not self._origins:
            return ()
        vary = (b"vary", b"origin")
        if origin not in self._origins or origin is None:
            return (vary,)
        return ((b"access-control-allow-origin", origin.encode("latin-1")), vary)

    def preflight(self, method: str, origin: str | None, wanted: str | None) -> Headers | None:
        """The answer to a browser that asks first; None where that is not what was asked."""
        if method != "OPTIONS" or origin not in self._origins or wanted not in ("GET", "POST"):
            return None
        more = (
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _FIELDS),
            (b"access-control-max-age", _SECONDS),
        )
        return (*self.answer(origin), *more)
