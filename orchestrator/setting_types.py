"""What the values of settings may look like. Pure: from a text to a value, or to what is wrong."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field


def lower(value: object) -> object:
    """Words in capitals are the same words."""
    return value.lower() if isinstance(value, str) else value


def entries(value: object) -> object:
    """A list of sets of keys; each set is looked at later."""
    if isinstance(value, list | tuple) and all(isinstance(each, dict) for each in value):
        return tuple(value)
    raise ValueError("give a list of models in a settings file, each with its keys: - model: NAME")


def _words(value: object) -> object:
    """A text of several words, as an environment variable has to say it."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _arguments(value: object) -> object:
    """A command line's part, as a shell would read it."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r}: a name is letters, digits and ._:/-, at most 128 of them")
    return value


def _plain(value: str) -> str:
    if not _PLAIN.fullmatch(value):
        raise ValueError(f"{value!r}: a name is letters, digits and ._-, at most 64 of them")
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError(f"{value!r}: give names or addresses, without port")
    return value


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError(f"{value!r}: an origin is like https://app.example, with no path")
    return value


def _url(value: str) -> str:
    told = f"{value!r}: give an address like http://host:4318, with a path or without"
    try:
        whole = bool(_URL.fullmatch(value) and urlsplit(value).hostname)
        whole = whole and urlsplit(value).port != 0
    except ValueError:  # a port or an IPv6 address that is none
        whole = False
    if not whole:
        raise ValueError(told)
    return value


def _named_path(value: str) -> str:
    name, equals, path = value.partition("=")
    if not equals or not path:
        raise ValueError(f"{value!r}: give an adapter as NAME=PATH")
    _name(name)
    return value


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9._\[\]:-]{1,253}")
_URL = re.compile(r"https?://[A-Za-z0-9._\[\]:-]{1,253}(/[A-Za-z0-9._~/%-]{0,1024})?")
PlainName = Annotated[str, AfterValidator(_plain)]
Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_words)]
NamedPaths = Annotated[
    tuple[Annotated[str, AfterValidator(_named_path)], ...], BeforeValidator(_words)
]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(_words)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_words)]
Url = Annotated[str, AfterValidator(_url)]
Arguments = Annotated[tuple[str, ...], BeforeValidator(_arguments)]
Quantization = Annotated[Literal["4bit", "8bit", "none"], BeforeValidator(lower)]
Backend = Annotated[Literal["vllm", "llama_server", "llama_cpp", "pytorch"], BeforeValidator(lower)]
Goal = Annotated[Literal["throughput", "latency", "quality", "memory"], BeforeValidator(lower)]
Where = Annotated[Literal["process", "docker"], BeforeValidator(lower)]
ImageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$")]
Routing = Annotated[Literal["auto", "least", "prefix", "p2c"], BeforeValidator(lower)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
