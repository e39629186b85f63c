"""Orders to a running server: each is one call of its admin API."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from orchestrator.cli.client import Server, ask, find_server
from orchestrator.cli.options import DataDir, Drain, Json, print_json

OneModel = Annotated[str | None, typer.Argument(help="Model name; the only one if unset.")]


def add_orders(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (restart, stop, start, load, unload, sleep, wake, scale, pin, unpin, drain):
        app.command()(command)
    app.command(name="reload")(reload_settings)


def restart(
    model: OneModel = None,
    drain_s: Drain = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Replace a model's engines; the new one is ready before the old drains, if memory allows."""
    _order(find_server(data_dir), model, "restart", _drain(drain_s), as_json)


def stop(
    model: OneModel = None,
    everything: Annotated[bool, typer.Option("--all", help="End the whole server.")] = False,
    drain_s: Drain = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Drain and stop a model until it is started again, or with --all the whole server."""
    if (model is None) == (not everything):
        raise typer.BadParameter("name a model, or give --all to end the server")
    server = find_server(data_dir)
    if model is not None:
        _order(server, model, "stop", _drain(drain_s), as_json)
        return
    answer = ask(server, "POST", "/admin/shutdown", _drain(drain_s))
    print_json(answer) if as_json else sys.stdout.write("the server drains and ends\n")


def start(model: OneModel = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Start a model that was stopped or has failed."""
    _order(find_server(data_dir), model, "start", None, as_json)


def load(model: OneModel = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Load a model now; others leave for it as they would for a request."""
    _order(find_server(data_dir), model, "load", None, as_json)


def unload(
    model: OneModel = None,
    drain_s: Drain = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Drain and unload a model; the next request loads it again."""
    _order(find_server(data_dir), model, "unload", _drain(drain_s), as_json)


def sleep(
    model: OneModel = None,
    level: Annotated[int, typer.Option(min=1, max=2, help="1: weights to RAM, 2: dropped.")] = 1,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Put a model's engines to sleep, where they can; a request wakes them."""
    _order(find_server(data_dir), model, "sleep", {"level": level}, as_json)


def wake(model: OneModel = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Wake a model's engines."""
    _order(find_server(data_dir), model, "wake", None, as_json)


def scale(
    replicas: Annotated[
        int, typer.Option("--replicas", "-n", min=1, max=64, help="Engines it shall have.")
    ],
    model: OneModel = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Have so many engines of a model."""
    _order(find_server(data_dir), model, "scale", {"replicas": replicas}, as_json)


def pin(model: OneModel = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Never unload a model for another one's sake."""
    _order(find_server(data_dir), model, "pin", None, as_json)


def unpin(model: OneModel = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Allow again that a model leaves."""
    _order(find_server(data_dir), model, "unpin", None, as_json)


def drain(
    engine: Annotated[str, typer.Argument(help="Engine id, see `ps`.")],
    drain_s: Drain = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let one engine finish its requests and stop it; other replicas serve on."""
    answer = ask(find_server(data_dir), "POST", f"/admin/engines/{engine}/drain", _drain(drain_s))
    print_json(answer) if as_json else sys.stdout.write(f"{engine} drains\n")


def reload_settings(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Read the settings file anew; only what it changed is touched."""
    told = ask(find_server(data_dir), "POST", "/admin/reload")
    if as_json:
        print_json(told)
        return
    for what in ("added", "changed", "removed", "kept"):
        if told[what]:
            sys.stdout.write(f"{what}: {', '.join(told[what])}\n")
    if told["needs_restart"]:
        names = ", ".join(told["needs_restart"])
        sys.stdout.write(f"changed, but applied only by a new start: {names}\n")


def _drain(drain_s: float | None) -> dict[str, Any] | None:
    return None if drain_s is None else {"drain_s": drain_s}


def _order(server: Server, model: str | None, what: str, body: object, as_json: bool) -> None:
    name = model or only_model(server)
    answer = ask(server, "POST", f"/admin/models/{name}/{what}", body)
    if as_json:
        print_json(answer)
    else:
        sys.stdout.write(f"{what} of {name} is under way; `engineroom ps` shows it\n")


def only_model(server: Server) -> str:
    """The name of the only served model. Raises BadParameter where there are several."""
    models = [row["model"] for row in ask(server, "GET", "/admin/models")["models"]]
    if len(models) != 1:
        raise typer.BadParameter(f"name a model: {', '.join(models) or 'none'} are served")
    return str(models[0])
