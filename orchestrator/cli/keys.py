"""`engineroom keys`: who may use the gateway, and how much."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.admin_keys import view
from orchestrator.cli.client import ask, find_server
from orchestrator.cli.options import DataDir, Json, out, print_json
from orchestrator.cli.show import columns, print_plain
from orchestrator.errors import ControlUnavailable
from orchestrator.keyfile import KeyFile
from orchestrator.keys import keys_path
from orchestrator.launching import private_folder
from orchestrator.settings import load_settings
from orchestrator.supervision.lock import only_one

_DAY_S = 86_400
_HEAD = ("NAME", "STATE", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "AT ONCE", "PRIORITY", "EXPIRES")

Name = Annotated[str, typer.Argument(help="Name of the key: letters, digits and ._-")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="A model it may use; repeatable; none: all.")
]
Requests = Annotated[int | None, typer.Option("--rpm", min=1, help="Requests per minute.")]
Tokens = Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens per minute.")]
AtOnce = Annotated[int | None, typer.Option("--concurrency", min=1, help="Requests at once.")]
Days = Annotated[float | None, typer.Option("--days", min=0.001, help="Days until it expires.")]
Priority = Annotated[
    int | None, typer.Option(min=-100, max=100, help="Highest priority it may ask for [0].")
]

app = typer.Typer(
    name="keys", help="API keys of the gateway: names, models, limits.", no_args_is_help=True
)


def _limits(
    models: list[str] | None,
    rpm: int | None,
    tpm: int | None,
    concurrency: int | None,
    days: float | None,
    priority: int | None,
) -> dict[str, Any]:
    """What was said of a key's limits."""
    said = {
        "models": models or None,
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "concurrency": concurrency,
        "expires_at": None if days is None else time.time() + days * _DAY_S,
        "priority": priority,
    }
    return {field: value for field, value in said.items() if value is not None}


@app.command()
def create(
    name: Name,
    models: Models = None,
    rpm: Requests = None,
    tpm: Tokens = None,
    concurrency: AtOnce = None,
    days: Days = None,
    priority: Priority = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once. From the first key on, nobody is served without one."""
    limits = _limits(models, rpm, tpm, concurrency, days, priority)
    made = _change(data_dir, "POST", name, limits)
    if as_json:
        print_json(made)
    else:
        sys.stderr.write(f"key {name} is made; this is the only time that it is shown:\n")
        sys.stdout.write(f"{made['key']}\n")


@app.command("list")
def list_keys(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Every key with its limits; never the secret."""
    try:
        rows = ask(find_server(data_dir), "GET", "/admin/keys")["keys"]
    except ControlUnavailable:
        now = time.time()
        rows = [view(each, now) for each in KeyFile(keys_path(_settings(data_dir))).all()]
    if as_json:
        print_json([{**row, "models": list(row["models"])} for row in rows])
    elif rows:
        columns(out(), [_HEAD, *map(_cells, rows)])
    else:
        print_plain(out(), "no keys: `engineroom keys create NAME` makes one")


@app.command()
def change(
    name: Name,
    models: Models = None,
    rpm: Requests = None,
    tpm: Tokens = None,
    concurrency: AtOnce = None,
    days: Days = None,
    priority: Priority = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change what is given; the rest stays. In force at once."""
    limits = _limits(models, rpm, tpm, concurrency, days, priority)
    if not limits:
        raise typer.BadParameter("say what to change, such as --rpm 60")
    changed = _change(data_dir, "PATCH", name, limits)
    print_json(changed) if as_json else sys.stdout.write(f"key {name} is changed\n")


@app.command()
def revoke(name: Name, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Make a key worthless at once; requests under way end as they are."""
    revoked = _change(data_dir, "DELETE", name, {})
    print_json(revoked) if as_json else sys.stdout.write(f"key {name} is revoked\n")


def _change(
    data_dir: Path | None, method: str, name: str, limits: Mapping[str, Any]
) -> dict[str, Any]:
    """Ask the running server; where none runs, change the file that the next one will read."""
    try:
        server = find_server(data_dir)
    except ControlUnavailable:
        return _change_file(data_dir, method, name, limits)
    if method == "POST":
        return ask(server, method, "/admin/keys", {"name": name, **limits})
    return ask(server, method, f"/admin/keys/{name}", dict(limits) or None)


def _change_file(
    data_dir: Path | None, method: str, name: str, limits: Mapping[str, Any]
) -> dict[str, Any]:
    settings = _settings(data_dir)
    private_folder(settings.data)
    with only_one(settings.data / "supervisor.lock"):
        file = KeyFile(keys_path(settings))
        secret: dict[str, Any] = {}
        if method == "POST":
            grant, secret["key"] = file.create(name, limits)
        else:
            grant = file.change(name, limits) if method == "PATCH" else file.revoke(name)
    return {**view(grant, time.time()), **secret}


def _settings(data_dir: Path | None) -> Any:
    return load_settings({"data_dir": data_dir})


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def number(field: str) -> str:
        return "-" if row[field] is None else f"{row[field]:,}"

    expires = row["expires_at"]
    when = "-" if expires is None else datetime.fromtimestamp(expires).strftime("%Y-%m-%d %H:%M")
    limits = (number("requests_per_minute"), number("tokens_per_minute"), number("concurrency"))
    models = ", ".join(row["models"]) or "all"
    return (row["name"], row["state"], models, *limits, str(row["priority"]), when)
