"""What `bench` and `test-streaming` take, and how it becomes a plan; wrong input is a sentence."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.bench.arrivals import KINDS
from orchestrator.bench.lengths import parse_length
from orchestrator.bench.load import Load
from orchestrator.bench.orders import Asking
from orchestrator.bench.parse import parse_duration, parse_prefix
from orchestrator.bench.targets import parse_target
from orchestrator.bench.workload import Workload
from orchestrator.cli.client import find_server
from orchestrator.errors import ConfigError
from orchestrator.settings import load_settings

KEY_ENV, OTHER_KEY_ENV = "BENCH_API_KEY", "BENCH_COMPARE_API_KEY"
_REQUESTS_A_USER = 10

Url = Annotated[
    str | None,
    typer.Argument(help="A server, http://host:port, or the path of its API; none: the one here."),
]
Api = Annotated[
    str | None,
    typer.Option(help="completions, chat, or generate (Engine Room's); completions if not said."),
]
ModelName = Annotated[str | None, typer.Option(help="Model to ask; needed where several are.")]
KeyEnv = Annotated[
    str | None, typer.Option(help=f"Variable with the API key ({KEY_ENV}).", show_default=False)
]
KeyFile = Annotated[Path | None, typer.Option(help="File with the API key on its first line.")]
Fields = Annotated[
    list[str] | None,
    typer.Option("--field", help="NAME=VALUE into each body, as ignore_eos=true; repeatable."),
]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")]
Timeout = Annotated[str, typer.Option(help="Limit of one request, as 30s or 10m.")]


@dataclass(frozen=True)
class Place:
    """Where to, and with which key; `hint` says where a key would come from."""

    asking: Asking
    hint: str


def read_key(variable: str | None, file: Path | None, usual: str) -> str | None:
    """The key of a target: from a file, or a variable. Raises ConfigError."""
    if file is not None:
        if variable is not None:
            raise ConfigError("a key comes from a variable or from a file: name one of them")
        try:
            mode, text = file.stat().st_mode, file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"key file {file}: cannot be read: {error}") from error
        if mode & 0o077:
            raise ConfigError(f"key file {file}: others may read it; run: chmod 600 {file}")
        lines = [line.strip() for line in text.splitlines()]
        found = next((line for line in lines if line and not line.startswith("#")), "")
        if not found:
            raise ConfigError(f"key file {file}: no key in it")
    else:
        found = os.environ.get(variable or usual, "").strip()
        if variable is not None and not found:
            raise ConfigError(f"the variable {variable} is not set, or empty")
    if not found.isascii() or not found.isprintable() or " " in found:
        raise ConfigError("the API key has characters that no HTTP header takes")
    return found or None


def place_of(
    url: str | None,
    api: str | None,
    model: str | None,
    key: tuple[str | None, Path | None, str],
    flags: str,
    data_dir: Path | None,
    stream: bool = True,
    timeout: str = "10m",
    more: dict[str, Any] | None = None,
) -> Place:
    """One target; the server of the data directory where none is named."""
    secret = read_key(*key)
    if url is None:
        url = find_server(data_dir).gateway
        ours = load_settings({"data_dir": data_dir}).api_keys
        if secret is None and ours is not None:
            secret = ours.get_secret_value().split(",")[0].strip() or None
    asking = Asking(
        parse_target(url, api),
        model,
        secret,
        stream,
        parse_duration(timeout, "--timeout"),
        more or {},
    )
    return Place(asking, f"put a valid one into {key[2]}, or name its place with {flags}")


def fields_of(given: list[str] | None) -> dict[str, Any]:
    """`--field NAME=VALUE`: JSON where it is JSON, else text. Raises ConfigError."""
    fields: dict[str, Any] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise ConfigError(f"--field {each!r}: write NAME=VALUE, as ignore_eos=true")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def load_of(
    users: int | None,
    rate: float | None,
    arrivals: str,
    requests: int | None,
    duration: str | None,
    prompt_tokens: str,
    output_tokens: str,
    shared_prefix: str | None,
    warmup: int | None,
    rounds: int | None,
    processes: int,
    seed: int | None,
    compares: bool,
) -> Load:
    """The load that the flags describe. Raises ConfigError."""
    if users is not None and rate is not None:
        raise ConfigError(
            "--users (each asks again when answered) and --rate (whatever comes back) exclude each "
            "other: choose one"
        )
    if arrivals not in KINDS:
        raise ConfigError(f"--arrivals {arrivals!r}: there are {' and '.join(KINDS)}")
    many = 10 if users is None else users
    seconds = None if duration is None else parse_duration(duration, "--duration")
    if requests is None and seconds is None:
        requests = many * _REQUESTS_A_USER if rate is None else 100
    share, prefix, groups = parse_prefix(shared_prefix) if shared_prefix else (0.0, None, 1)
    workload = Workload(
        seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
        prompt=parse_length(prompt_tokens, "--prompt-tokens"),
        output=parse_length(output_tokens, "--output-tokens"),
        share=share,
        prefix_tokens=prefix,
        groups=groups,
    )
    chosen = rounds if rounds is not None else 5 if compares else 1
    if requests is not None and requests < chosen:
        raise ConfigError(f"--requests {requests}: fewer than the {chosen} --rounds")
    return Load(
        workload, many, rate, arrivals, requests, seconds,
        warmup=min(many, 20) if warmup is None else warmup, rounds=chosen, processes=processes,
    )  # fmt: skip
