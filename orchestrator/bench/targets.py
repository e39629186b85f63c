"""Where requests go, and their bytes. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orchestrator import __version__
from orchestrator.bench.answers import DIALECTS
from orchestrator.errors import ConfigError

_PATHS = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/generate": "generate",
    "/generate_stream": "generate",
}


@dataclass(frozen=True)
class Target:
    """A server and one of its dialects. `prefix` stands before the API's own paths."""

    url: str  # as given, without what might be secret
    tls: bool
    host: str
    port: int
    prefix: str
    dialect: str

    @property
    def models_path(self) -> str:
        """Where its models are listed."""
        return self.prefix + "/v1/models"

    def path(self, stream: bool) -> str:
        """Where requests go."""
        if self.dialect == "generate":
            return self.prefix + ("/generate_stream" if stream else "/generate")
        tail = "/v1/completions" if self.dialect == "completions" else "/v1/chat/completions"
        return self.prefix + tail


def parse_target(url: str, dialect: str | None) -> Target:
    """Read `host:port`, `http://host:port`, `.../v1`, or the whole path of an API.

    A path that names an API chooses it; else `dialect`, else completions. Raises ConfigError.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise ConfigError(f"--api {dialect!r}: there are {', '.join(DIALECTS)}")
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not whole.isascii():
        raise ConfigError(f"{url!r} is no URL of a server: write http://HOST:PORT")
    if any(ord(each) < 33 for each in whole):
        raise ConfigError(f"{url!r} is no URL: it has spaces or control characters")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            "the URL must have no user, query or fragment; a key comes by variable or --key-file"
        )
    path = parts.path.rstrip("/")
    for tail, named in sorted(_PATHS.items(), key=lambda item: -len(item[0])):
        if path.endswith(tail):
            if dialect not in (None, named):
                raise ConfigError(f"{url} is the {named} API, and --api says {dialect}")
            dialect, path = named, path.removesuffix(tail)
            break
    else:
        path = path.removesuffix("/v1")
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    return Target(whole.rstrip("/"), tls, parts.hostname, port, path, dialect or "completions")


def body(
    target: Target, model: str | None, prompt: str, tokens: int, stream: bool, more: dict[str, Any]
) -> dict[str, Any]:
    """The body of one request; `more` has `temperature`, `usage` and `fields`, which win."""
    cold = more.get("temperature", 0.0) == 0
    made: dict[str, Any] = {"model": model} if model is not None else {}
    own: dict[str, Any] = more.get("fields", {})
    if target.dialect == "generate":
        made |= {"prompt": prompt, "max_new_tokens": tokens}
        made |= {"do_sample": False} if cold else {"temperature": more["temperature"]}
        return made | own
    if target.dialect == "chat":
        made["messages"] = [{"role": "user", "content": prompt}]
    else:
        made["prompt"] = prompt
    made |= {"max_tokens": tokens, "temperature": more.get("temperature", 0.0), "stream": stream}
    if stream and more.get("usage", True):
        made["stream_options"] = {"include_usage": True}
    return made | own


def request_bytes(
    target: Target, method: str, path: str, key: str | None, body: dict[str, Any] | None
) -> bytes:
    """One HTTP/1.1 request, head and body."""
    data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [
        f"{method} {path or '/'} HTTP/1.1",
        f"host: {host}:{target.port}",
        f"user-agent: engineroom-bench/{__version__}",
        "accept: */*",
    ]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(data)}"]
    if key:
        lines.append(f"authorization: Bearer {key}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data
