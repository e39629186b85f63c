"""The `engineroom` command. Each command is a thin layer: settings in, one call, words out."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from orchestrator import __version__
from orchestrator.cli import show
from orchestrator.cli.bench import bench, check_streaming
from orchestrator.cli.calibration import app as calibration
from orchestrator.cli.client import Server, ask, checked, find_server
from orchestrator.cli.doctor import doctor
from orchestrator.cli.engines import app as engines
from orchestrator.cli.events import events
from orchestrator.cli.gateway import gateway
from orchestrator.cli.generate import generate
from orchestrator.cli.keys import app as keys
from orchestrator.cli.options import (
    AdapterPath,
    Adapters,
    Aliases,
    Backend,
    Config,
    Context,
    DataDir,
    Drain,
    EngineArgs,
    EngineImage,
    EnginePath,
    EngineVersion,
    ForceCpu,
    Goal,
    GpuLayers,
    Json,
    MemoryShare,
    Model,
    Parallel,
    Quantization,
    Runtime,
    Threads,
    Users,
    Workers,
    given,
    out,
    print_json,
)
from orchestrator.cli.orders import add_orders
from orchestrator.cli.planning import plan, probe
from orchestrator.cli.pull import pull_command
from orchestrator.cli.serving import Screen
from orchestrator.errors import ControlUnavailable, EngineMissing, EngineRoomError
from orchestrator.observability.logs import configure
from orchestrator.serve import serve as serve_forever
from orchestrator.settings import Settings, chosen_file, load_settings
from orchestrator.startup import Planning, shelf_of
from orchestrator.tls import trusting

app = typer.Typer(
    name="engineroom",
    help="Runs LLM engines on this machine: probe, plan, launch, serve, heal, stop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options before the command."""
    if version:
        sys.stdout.write(f"engineroom {__version__}\n")
        raise typer.Exit


app.command()(probe)
app.command()(plan)
app.command()(generate)
app.command()(gateway)
app.add_typer(engines)
app.add_typer(calibration)
app.add_typer(keys)


@app.command()
def serve(
    call: typer.Context,
    model: Model = None,
    host: Annotated[str | None, typer.Option(help="Address of the gateway [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gateway [8001].")] = None,
    admin_host: Annotated[str | None, typer.Option(help="Address of the admin API.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the admin API [8002].")] = None,
    context: Context = None,
    users: Users = None,
    goal: Goal = None,
    threads: Threads = None,
    quantization: Quantization = None,
    aliases: Aliases = None,
    adapter_path: AdapterPath = None,
    adapters: Adapters = None,
    force_backend: Backend = None,
    engine_version: EngineVersion = None,
    engine_path: EnginePath = None,
    engine_image: EngineImage = None,
    runtime: Runtime = None,
    engine_url: Annotated[
        str | None, typer.Option(help="A running server, http://host:port, used as it is.")
    ] = None,
    engine_args: EngineArgs = None,
    force_cpu: ForceCpu = None,
    tensor_parallel_size: Parallel = None,
    gpu_memory_utilization: MemoryShare = None,
    gpu_layers: GpuLayers = None,
    install_missing: Annotated[
        bool | None, typer.Option("--yes", help="Install a missing engine without asking.")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests that may wait.")] = None,
    gateway_workers: Workers = None,
    drain_s: Drain = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Serve other machines without keys.")
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
    tied: Annotated[
        bool, typer.Option("--tied", help="End when standard input closes; tell each step.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start everything and serve until Ctrl-C or SIGTERM: one model, or those of the file."""
    flags = given(locals())

    def read() -> Settings:
        return load_settings(flags, file=config)

    settings = read()
    configure(settings.log_level, settings.log_format)
    notes = Console(stderr=True)
    screen = Screen(out(), notes, as_json, steps=tied)
    offer = screen.offer if not settings.install_missing else (lambda need: True)
    # The launchers of a caller who brings their own come in the context.
    planning = Planning(shelf_of(settings), read, call.obj, offer, chosen_file(config))
    decisions = planning.decide(settings)
    screen.begin(decisions)
    try:
        asyncio.run(serve_forever(settings, decisions, planning, screen, tied))
    except EngineMissing as error:  # it could not be installed: the next best that is here
        decisions = planning.next_best(settings, error)
        screen.begin(decisions, error.message)
        asyncio.run(serve_forever(settings, decisions, planning, screen, tied))


@app.command()
def ps(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, once a second.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List engines and gateways of the running server: state, memory, speed, restarts and why."""
    server = find_server(data_dir)

    def rows() -> list[dict[str, Any]]:
        return list(ask(server, "GET", "/admin/engines")["engines"])

    if as_json:
        print_json(rows())
        return
    console = out()
    show.engines(console, rows())
    while watch:
        time.sleep(1)
        latest = rows()
        console.clear()
        show.engines(console, latest)


@app.command()
def logs(
    engine: Annotated[str | None, typer.Argument(help="Engine id, see `ps`.")] = None,
    tail: Annotated[int, typer.Option(min=0, max=10_000, help="Lines from the end.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print an engine's output; the only engine where none is named."""
    server = find_server(data_dir)
    name = engine or _only_engine(server)
    params: dict[str, Any] = {"tail": tail, "follow": follow}
    path = f"/admin/engines/{name}/logs"
    try:
        with (
            server.admin_client() as client,
            client.stream("GET", path, params=params, timeout=None) as answer,
        ):
            if answer.is_error:
                answer.read()
                checked(answer)
            for line in answer.iter_lines():
                if as_json:
                    print_json({"engine": name, "line": line})
                else:
                    sys.stdout.write(line + "\n")
                sys.stdout.flush()
    except httpx.HTTPError as error:
        raise ControlUnavailable("the server went away before the log ended") from error


def _only_engine(server: Server) -> str:
    rows = ask(server, "GET", "/admin/engines")["engines"]
    names = [row["id"] for row in rows if row["kind"] == "engine"]
    if len(names) != 1:
        raise typer.BadParameter(f"name an engine: {', '.join(names) or 'none'}, or gateway-0")
    return str(names[0])


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="One question; none: a session.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1)] = 512,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Talk to the served model. The key is read from ENGINEROOM_API_KEYS where one is needed."""
    server = find_server(data_dir)
    secret = load_settings({"data_dir": data_dir}).api_keys
    key = secret.get_secret_value().split(",")[0].strip() if secret else ""
    body: dict[str, Any] = {
        "model": model or server.model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "stream": not as_json,
    }
    history: list[dict[str, str]] = []
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(None, connect=5)
    with httpx.Client(
        base_url=server.gateway,
        headers=headers,
        timeout=timeout,
        trust_env=False,
        verify=trusting(server.certificate) if server.certificate else True,
    ) as client:
        while True:
            try:
                text = message if message is not None else input("you> ")
            except (EOFError, KeyboardInterrupt):
                sys.stdout.write("\n")
                return
            if text.strip():
                history.append({"role": "user", "content": text})
                history.append(_say(client, {**body, "messages": history}, as_json))
            if message is not None:
                return


def _say(client: httpx.Client, body: dict[str, Any], as_json: bool) -> dict[str, str]:
    path = "/v1/chat/completions"
    try:
        if as_json:
            value = checked(client.post(path, json=body))
            print_json(value)
            return {"role": "assistant", "content": value["choices"][0]["message"]["content"] or ""}
        with client.stream("POST", path, json=body) as answer:
            if answer.is_error:
                answer.read()
                checked(answer)
            parts = list(_deltas(answer))
    except httpx.HTTPError as error:
        raise ControlUnavailable(f"the gateway at {client.base_url} does not answer") from error
    sys.stdout.write("\n")
    return {"role": "assistant", "content": "".join(parts)}


def _deltas(answer: httpx.Response) -> Iterator[str]:
    """Print the text of a chat stream as it comes, and yield it."""
    for line in answer.iter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        value = json.loads(line[6:])
        if "error" in value:
            raise EngineRoomError(str(value["error"]["message"]))
        for choice in value["choices"]:
            text = choice["delta"].get("content") or ""
            sys.stdout.write(text)
            sys.stdout.flush()
            yield text


app.command(name="pull")(pull_command)
add_orders(app)
app.command()(bench)
app.command("test-streaming")(check_streaming)
app.command()(events)
app.command()(doctor)


def guarded(main: Callable[[], None]) -> None:
    """Run `main`; our errors become one sentence and an exit code, never a traceback."""
    try:
        main()
    except EngineRoomError as error:
        if "--json" in sys.argv:
            print_json(error.envelope())
        sys.stderr.write(f"engineroom: {error.message}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"engineroom: {place}{error.strerror or error}\n")
        sys.exit(74)
    except KeyboardInterrupt:
        sys.exit(130)


def run() -> None:
    """Entry point of the `engineroom` command."""
    guarded(app)


if __name__ == "__main__":
    run()
